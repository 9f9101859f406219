"""An answer that is one JSON document: the non-streamed dialects and all embeddings.

It passes as it comes; its counts are read when it has ended. They stand at its end, so of a long one (embeddings run
to megabytes) only the tail is kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from policy.rules.metering import BYTES_PER_TOKEN
from processor import chunks, ndjson
from processor.tally import count, parse, trailing_counts, trailing_usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from processor.tally import Tally, Usage

WHOLE = 64 << 10  # parsing more than this would hold up every other stream for milliseconds
TAIL = 8 << 10
AROUND = 250  # bytes of JSON around its text
_ERROR = b'{"error"'


class DocumentMeter:
    """Reads one document; edits it only if it is an error under a good status."""

    def __init__(
        self, tally: Tally, *, read: Callable[[Tally, dict[str, object]], None], fault: bytes, cap: int
    ) -> None:
        self.cut = False
        self._cap = max(cap, 0)
        self._bytes = 0
        self._tally = tally
        self._read = read
        self._fault = fault
        self._body = bytearray()
        self._long = False
        self._is_error: bool | None = None  # None: too little has come to tell

    def feed(self, chunk: bytes, end: bool) -> bytes | None:
        held = bytes(self._body) if self._is_error is None else b""
        self._body += chunk
        self._bytes += len(chunk)
        if self._is_error is None:
            start = bytes(self._body[: 2 * TAIL]).lstrip()[: len(_ERROR)]
            if not end and len(self._body) < TAIL and len(start) < len(_ERROR) and _ERROR.startswith(start):
                return b"" if chunk else None
            self._is_error = start == _ERROR
            self._tally.failed = self._is_error
        if len(self._body) > WHOLE:
            self._long = True
            del self._body[:-TAIL]
        if self._is_error:
            return self._fault if end else (b"" if chunk else None)
        if end:
            self._settle(self._tally)
            self._tally.finished = self._tally.finished or self._long
        return held + chunk if held else None

    def usage(self) -> Usage:
        tally = self._tally
        if not tally.finished and not self._is_error:
            tally = replace(tally)
            self._settle(tally)  # a client that leaves with the last byte leaves no end to see
        return tally.usage()

    def _settle(self, tally: Tally) -> None:
        document = last_members(self._body) if self._long else parse(self._body)
        if document:
            self._read(tally, document)
            if tally.deltas:
                tally.guess = min((self._bytes - AROUND) // BYTES_PER_TOKEN, self._cap)


def last_members(tail: bytes | bytearray) -> dict[str, object]:
    """What a document too long to parse still says of itself: that it is long, hence not empty, and its counts."""
    members: dict[str, object] = dict(trailing_counts(tail))
    if usage := trailing_usage(tail):
        members["usage"] = usage
    if not members:
        return {}
    return {"done": True, "message": {"content": "…"}, "embeddings": ["…"], **members}


def read_native(tally: Tally, document: dict[str, object]) -> None:
    """/api/chat and /api/generate."""
    if document.get("done") is True:
        tally.deltas = int(ndjson.has_content(document))
        tally.native(document)


def read_embed(tally: Tally, document: dict[str, object]) -> None:
    """/api/embed and the legacy /api/embeddings, which mostly reports nothing at all."""
    prompt = document.get("prompt_eval_count")
    if prompt is None and document.get("embeddings") == []:
        prompt = 0  # nothing was asked for, and Go leaves out a zero
    tally.finished = True
    tally.report(count(prompt), 0)
    tally.load_duration = count(document.get("load_duration")) or 0
    tally.total_duration = count(document.get("total_duration")) or 0


def read_choices(tally: Tally, document: dict[str, object]) -> None:
    """/v1/chat/completions and /v1/completions."""
    choices, usage = document.get("choices"), document.get("usage")
    if isinstance(choices, list):
        tally.deltas = sum(isinstance(choice, dict) and chunks.has_content(choice) for choice in choices)
    tally.finished = True
    if isinstance(usage, dict):
        tally.openai(usage)


def read_embeddings(tally: Tally, document: dict[str, object]) -> None:
    """/v1/embeddings, where a count that is not set stands as zero."""
    usage = document.get("usage")
    prompt = count(usage.get("prompt_tokens")) if isinstance(usage, dict) else None
    tally.finished = True
    tally.report(None if prompt == 0 and document.get("data") != [] else prompt, 0)


def read_tokens(tally: Tally, document: dict[str, object]) -> None:
    """/v1/responses and /v1/messages."""
    usage = document.get("usage")
    tally.finished = True
    if isinstance(usage, dict):
        tally.deltas = int(bool(document.get("output") or document.get("content")))
        tally.tokens_in_out(usage)
