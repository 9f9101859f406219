"""What one answer used, as it comes to be known.

Two sources, never mixed up: what the upstream reported in the final object of its dialect (exact), and the content
chunks that were seen to pass (an estimate, when the end never came). Ollama sends one chunk for a token, or fewer:
parsers for thinking and tools hold some back.

Nothing here raises on what an upstream says. A count that is no plausible count is a count that was not reported.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

# Beyond any context window and any uptime in nanoseconds; also what every JSON reader holds exactly.
_LARGEST = 2**53

# The last members of an object, all plain numbers, up to its closing brace at the end of the text. A quote inside a
# JSON string is escaped and a nested object ends in two braces, so generated text can not look like this.
_TRAILING_COUNTS = re.compile(rb'((?:,"[a-z_]+":\d{1,18})+)\}\s*\Z')


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer used, as far as it is known. Durations are the upstream's own, in nanoseconds, zero if unknown."""

    prompt_tokens: int | None  # None: not reported
    completion_tokens: int  # as reported, else the content chunks that passed, or a guess by the length of a document
    exact: bool  # both counts are the upstream's own
    deltas: int  # content chunks that passed
    load_duration: int = 0
    prompt_eval_duration: int = 0
    eval_duration: int = 0
    total_duration: int = 0
    finished: bool = False  # the dialect's final object was seen
    failed: bool = False  # the upstream said, or by its silence showed, that it failed
    readable: bool = True  # False: in a content encoding that can not be read; nothing here was measured


@dataclass(slots=True)
class Tally:
    """The running count behind a Usage."""

    deltas: int = 0
    spare: int = 0  # deltas that may be half a token: they do not count against the cap
    prompt: int | None = None
    completion: int | None = None
    load_duration: int = 0
    prompt_eval_duration: int = 0
    eval_duration: int = 0
    total_duration: int = 0
    finished: bool = False
    failed: bool = False
    readable: bool = True
    guess: int = 0  # what a whole answer without counts may have been, by its length

    def report(self, prompt: int | None, completion: int | None) -> None:
        """Take the upstream's own counts. Zero for an answer that had content is no count: it was not set, and then a
        prompt of zero was not either."""
        unset = self.deltas > 0 and not completion
        self.prompt = None if unset and not prompt else prompt
        self.completion = None if unset else completion

    def native(self, final: dict[str, object]) -> None:
        """Read the final object of /api/chat or /api/generate (`done` is true). Go leaves out a count that is zero."""
        self.finished = True
        prompt, completion = final.get("prompt_eval_count"), final.get("eval_count")
        if prompt is None and (completion is not None or not self.deltas):
            prompt = 0
        self.report(count(prompt), count(completion if completion is not None else 0))
        self.load_duration = count(final.get("load_duration")) or 0
        self.prompt_eval_duration = count(final.get("prompt_eval_duration")) or 0
        self.eval_duration = count(final.get("eval_duration")) or 0
        self.total_duration = count(final.get("total_duration")) or 0

    def openai(self, usage: dict[str, object]) -> None:
        """Read `usage` as /v1/chat/completions and /v1/completions write it."""
        self.report(count(usage.get("prompt_tokens")), count(usage.get("completion_tokens")))

    def tokens_in_out(self, usage: dict[str, object]) -> None:
        """Read `usage` as /v1/responses and /v1/messages write it."""
        self.report(count(usage.get("input_tokens")), count(usage.get("output_tokens")))

    def usage(self) -> Usage:
        """The Usage so far."""
        return Usage(
            prompt_tokens=self.prompt,
            completion_tokens=max(self.deltas, self.guess) if self.completion is None else self.completion,
            exact=self.prompt is not None and self.completion is not None,
            deltas=self.deltas,
            load_duration=self.load_duration,
            prompt_eval_duration=self.prompt_eval_duration,
            eval_duration=self.eval_duration,
            total_duration=self.total_duration,
            finished=self.finished,
            failed=self.failed,
            readable=self.readable,
        )


def parse(data: bytes | bytearray) -> dict[str, object] | None:
    """The JSON object in `data`, or None. Broken UTF-8 in a text does not hide the counts beside it."""
    try:
        value = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def count(value: object) -> int | None:
    """`value` if it is a count: a whole number, not negative, of a believable size."""
    return value if type(value) is int and 0 <= value <= _LARGEST else None


def trailing_counts(tail: bytes | bytearray) -> dict[str, object]:
    """The plain numbers that close the object of which `tail` is the end: how native answers and embeddings end."""
    found = _TRAILING_COUNTS.search(tail)
    return (parse(b"{" + found[1][1:] + b"}") or {}) if found else {}


def trailing_usage(tail: bytes | bytearray) -> dict[str, object] | None:
    """The last `usage` object in `tail`. The last, since tools that the client named may come before it."""
    start = tail.rfind(b'"usage":{')
    if start < 0:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(tail[start + 8 :].decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
