"""The OpenAI dialect: /v1/chat/completions and /v1/completions as SSE, closed by `data: [DONE]`.

Where usage was asked for, chat sends one more event after the last, with no choices. Completions do so too, and put a
usage of zeros on every event before it. A client that did not ask for usage sees neither: the closing event is taken
out, and the zeros are cut off, which leaves the bytes that Ollama sends to a client that does not ask.

An event in which some choice has `"finish_reason":null` is not a final one (inside strings quotes are escaped, and
tool arguments are strings here). All other events are parsed.

After an error in mid-stream Ollama sends an empty chunk and ends the stream without `[DONE]`: the client could not
tell that from a complete answer, so it gets an error event.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from processor import sse
from processor.frames import DELTA, PLAIN, TAINT, Judgement
from processor.tally import parse, trailing_usage

if TYPE_CHECKING:
    from processor.tally import Tally

FAULT: dict[str, object] = {"error": {"message": "upstream error", "type": "bad_gateway", "code": 502}}
DONE = b"data: [DONE]\n\n"
_ZEROS: dict[str, object] = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
_IDLE = b',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}\n\n'
_USAGE = re.compile(rb',"usage":(?:null|\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})\}(\s*)\Z')
_QUOTE = ord('"')


class Chunks:
    """See `frames.Dialect`."""

    terminator = b"\n\n"
    boundary = staticmethod(sse.boundary)

    def __init__(self, tally: Tally, *, chat: bool, hide_usage: bool, prompt_estimate: int) -> None:
        self._tally = tally
        self._chat = chat
        self._text = b'"content":"' if chat else b'"text":"'
        self._hide = hide_usage
        self._prompt_estimate = prompt_estimate
        self._thinking = False  # the last delta was one of reasoning
        self._complete = False  # a choice has said why it ended

    def glance(self, chunk: bytes) -> Judgement | None:
        if chunk.startswith(b"data: {") and chunk.endswith(b"}\n\n") and chunk.find(b"\n") == len(chunk) - 2:
            return self._quick(chunk)
        return None

    def _quick(self, event: bytes) -> Judgement | None:
        """Judge one event of one line, if it is an ordinary one."""
        if b'"finish_reason":null' not in event or TAINT in event:
            return None
        instead = None
        if b'"usage":{' in event:
            if not event.endswith(_IDLE):
                return None
            if self._hide and not self._chat:
                instead = event[: -len(_IDLE)] + b"}\n\n"
        at = event.find(self._text)
        if at >= 0 and event[at + len(self._text)] != _QUOTE:
            if self._thinking:
                self._turn(reasoning=False)
        elif self._chat and b'"reasoning":"' in event:
            self._turn(reasoning=True)
        elif self._chat and b'"tool_calls":[' in event:
            self._turn(reasoning=False)
        else:
            return None if instead else PLAIN  # with `instead`, an empty chunk: rare enough to parse
        return Judgement(True, instead) if instead else DELTA

    def _turn(self, *, reasoning: bool) -> None:
        """Ollama sends a token that ends the reasoning and begins the answer as two chunks: the cap allows for it."""
        if self._thinking and not reasoning:
            self._tally.spare += 1
        self._thinking = reasoning

    def opened(self, head: bytearray) -> bool:
        if self._hide and not self._chat:
            return False  # every event of these changes, and at its end
        return b'"choices":[{' in head

    def judge(self, frame: bytes) -> Judgement:
        if judgement := self.glance(frame):
            return judgement
        data = sse.data_of(frame)
        if data == b"[DONE]":
            self._tally.finished = True
            return PLAIN
        chunk = parse(data) if data else None
        if chunk is None and TAINT not in data:
            return PLAIN
        if chunk is None or chunk.get("error") is not None:
            return Judgement(delta=False, instead=self.fault())
        return self._read(chunk, frame)

    def _read(self, chunk: dict[str, object], frame: bytes) -> Judgement:
        choices = chunk.get("choices")
        choices = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
        usage = chunk.get("usage")
        instead = None
        content = any(has_content(choice) for choice in choices)
        final = any(choice.get("finish_reason") is not None for choice in choices)
        if final:
            self._complete = True
            self._tally.deltas += content  # counted before usage is read, and never where a stream is cut
        if isinstance(usage, dict):
            # Zeros beside a choice are those of a chunk in mid-stream: only the last usage counts anything.
            if not choices or usage.get("prompt_tokens") or usage.get("completion_tokens"):
                self._tally.openai(usage)
            if self._hide and not choices:
                return Judgement(delta=False, instead=b"")
            if self._hide and not self._chat:
                instead = _USAGE.sub(rb"}\1", frame)
        if content:
            self._turn(reasoning=not any(has_content(choice, reasoning=False) for choice in choices))
        return Judgement(delta=content and not final, instead=instead)

    def judge_tail(self, tail: bytes) -> None:
        self._tally.deltas += 1
        usage = trailing_usage(tail)
        if usage and (usage.get("prompt_tokens") or usage.get("completion_tokens")):
            self._tally.openai(usage)

    def fault(self) -> bytes:
        self._tally.failed = True
        return sse.event(FAULT)

    def ending(self, frame: bytes) -> bytes:
        chunk = parse(sse.data_of(frame)) or {}
        names = ("id", "object", "created", "model", "system_fingerprint")
        head: dict[str, object] = {name: chunk[name] for name in names if name in chunk}
        last: dict[str, object] = {"index": 0, "finish_reason": "length"}
        last |= {"delta": {"role": "assistant", "content": ""}} if self._chat else {"text": ""}
        if self._hide:
            return sse.event({**head, "choices": [last]}) + DONE
        prompt, completion = self._prompt_estimate, self._tally.deltas
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        zeros: dict[str, object] = {} if self._chat else {"usage": _ZEROS}
        return (
            sse.event({**head, "choices": [last], **zeros}) + sse.event({**head, "choices": [], "usage": usage}) + DONE
        )

    def closing(self, *, broken: bool) -> bytes:
        if self._tally.finished:
            return b""
        lead = self.terminator if broken else b""
        if self._complete or self._tally.failed:
            return lead + DONE
        return lead + self.fault() + DONE


def has_content(choice: dict[str, object], *, reasoning: bool = True) -> bool:
    """Whether a choice, of a chunk or of a whole document, carries something that was generated."""
    parts = choice.get("delta", choice.get("message"))
    if not isinstance(parts, dict):
        return bool(choice.get("text"))
    if parts.get("content") or parts.get("tool_calls"):
        return True
    return reasoning and bool(parts.get("reasoning") or parts.get("reasoning_content"))
