"""The native dialect: /api/chat and /api/generate as NDJSON, one object a line, the last with `done` true.

Ollama writes compact JSON with `done` last in every line but the final one. A line that ends in `"done":false}` is
therefore not the final one, whatever was generated: inside a string every quote is escaped, and a tool call's
arguments end in more than one brace. All other lines are parsed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from processor.frames import DELTA, PLAIN, TAINT, Judgement
from processor.tally import parse, trailing_counts

if TYPE_CHECKING:
    from processor.tally import Tally

FAULT = b'{"error":"upstream error"}\n'
_GOES_ON = b'"done":false}\n'
_QUOTE = ord('"')


class Native:
    """See `frames.Dialect`. `text` is the key that holds what was generated: content (chat) or response (generate)."""

    terminator = b"\n"

    def __init__(self, tally: Tally, *, text: str, prompt_estimate: int) -> None:
        self._tally = tally
        self._text = b'"%s":"' % text.encode()
        self._prompt_estimate = prompt_estimate

    def glance(self, chunk: bytes) -> Judgement | None:
        if chunk.endswith(_GOES_ON) and chunk.find(b"\n") == len(chunk) - 1:
            return self._quick(chunk)
        return None

    def _quick(self, line: bytes) -> Judgement | None:
        """Judge a line that is known to end in `_GOES_ON`."""
        if TAINT in line:
            return None
        at = line.find(self._text)
        if at >= 0 and line[at + len(self._text)] != _QUOTE:
            return DELTA
        return DELTA if b'"thinking":"' in line or b'"tool_calls":[' in line else PLAIN

    def boundary(self, data: bytes | bytearray, start: int, scan: int, *, whole: bool) -> int:
        found = data.find(b"\n", max(start, scan))
        return found + 1 if found >= 0 else -1

    def opened(self, head: bytearray) -> bool:
        return head.startswith(b'{"model":')  # Ollama's error lines begin with their `error`

    def judge(self, frame: bytes) -> Judgement:
        if frame.endswith(_GOES_ON) and (judgement := self._quick(frame)):
            return judgement
        line = parse(frame)
        if line is None and TAINT not in frame:
            return PLAIN
        if line is None or line.get("error") is not None:
            return Judgement(delta=False, instead=self.fault())
        if line.get("done") is not True:
            return DELTA if has_content(line) else PLAIN
        self._tally.deltas += has_content(line)
        self._tally.native(line)
        return PLAIN

    def judge_tail(self, tail: bytes) -> None:
        self._tally.deltas += 1
        if final := trailing_counts(tail):
            self._tally.native(final)

    def fault(self) -> bytes:
        self._tally.failed = True
        return FAULT

    def ending(self, frame: bytes) -> bytes:
        line = parse(frame) or {}
        final: dict[str, object] = {key: line[key] for key in ("model", "created_at") if key in line}
        if "message" in line:
            final["message"] = {"role": "assistant", "content": ""}
        else:
            final["response"] = ""
        final |= {"done": True, "done_reason": "length"}
        counts = {"prompt_eval_count": self._prompt_estimate, "eval_count": self._tally.deltas}
        final |= {key: value for key, value in counts.items() if value}  # as Go would: a zero is left out
        return json.dumps(final, separators=(",", ":")).encode() + b"\n"

    def closing(self, *, broken: bool) -> bytes:
        return b""  # Ollama ends every native stream by a final line or an error line; a broken one speaks for itself


def has_content(line: dict[str, object]) -> bool:
    """Whether a native object, a line or a whole document, carries something that was generated."""
    message = line.get("message")
    parts = message if isinstance(message, dict) else line
    return any(parts.get(key) for key in ("content", "response", "thinking", "tool_calls", "image"))
