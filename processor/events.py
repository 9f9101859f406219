"""Dialects of typed events: /v1/responses (OpenAI) and /v1/messages (Anthropic).

Every event names its type twice, in its `event` line and in the `type` of its data; what was generated comes in events
whose name ends in `.delta` or is `content_block_delta`. The former are judged by their name alone, the others, a dozen
an answer, are parsed.

`message_start` reports an estimate of the prompt; only `message_delta`, at the end, counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from processor import sse
from processor.frames import DELTA, PLAIN, TAINT, Judgement
from processor.tally import parse, trailing_usage

if TYPE_CHECKING:
    from processor.tally import Tally


class Messages:
    """See `frames.Dialect`."""

    terminator = b"\n\n"
    boundary = staticmethod(sse.boundary)
    _NAME = b"event: content_block_delta\n"

    def __init__(self, tally: Tally, *, prompt_estimate: int) -> None:
        self._tally = tally
        self._prompt_estimate = prompt_estimate

    def glance(self, chunk: bytes) -> Judgement | None:
        # One event: it begins by its name, and has two line ends and the empty line.
        if not chunk.startswith(self._NAME) or not chunk.endswith(b"\n\n") or chunk.count(b"\n") != 3:
            return None
        return None if TAINT in chunk or b'"signature_delta"' in chunk else DELTA

    def opened(self, head: bytearray) -> bool:
        return head.startswith(self._NAME)

    def judge(self, frame: bytes) -> Judgement:
        if judgement := self.glance(frame):
            return judgement
        data = sse.data_of(frame)
        event = parse(data)
        if event is None:
            return Judgement(delta=False, instead=self.fault()) if TAINT in data else PLAIN
        kind = event.get("type")
        if kind == "error" or event.get("error") is not None:
            return Judgement(delta=False, instead=self.fault())
        if kind == "content_block_delta":
            delta = event.get("delta")
            return DELTA if isinstance(delta, dict) and delta.get("type") != "signature_delta" else PLAIN
        usage = event.get("usage")
        if kind == "message_delta" and isinstance(usage, dict):
            self._tally.tokens_in_out(usage)
        self._tally.finished = self._tally.finished or kind == "message_stop"
        return PLAIN

    def judge_tail(self, tail: bytes) -> None:
        self._tally.deltas += 1  # the events that are not content are all short

    def fault(self) -> bytes:
        self._tally.failed = True
        data: dict[str, object] = {"type": "error", "error": {"type": "api_error", "message": "upstream error"}}
        return sse.event(data, name="error")

    def ending(self, frame: bytes) -> bytes:
        index = (parse(sse.data_of(frame)) or {}).get("index", 0)
        usage = {"input_tokens": self._prompt_estimate, "output_tokens": self._tally.deltas}
        delta = {"stop_reason": "max_tokens", "stop_sequence": None}
        return (
            sse.event({"type": "content_block_stop", "index": index}, name="content_block_stop")
            + sse.event({"type": "message_delta", "delta": delta, "usage": usage}, name="message_delta")
            + sse.event({"type": "message_stop"}, name="message_stop")
        )

    def closing(self, *, broken: bool) -> bytes:
        if self._tally.finished or self._tally.failed:
            return b""
        return (self.terminator if broken else b"") + self.fault()


class Responses:
    """See `frames.Dialect`."""

    terminator = b"\n\n"
    boundary = staticmethod(sse.boundary)
    _NAME = b"event: response."

    def __init__(self, tally: Tally, *, prompt_estimate: int) -> None:
        self._tally = tally
        self._prompt_estimate = prompt_estimate
        self._response: dict[str, object] = {}  # who answers: repeated in the last event

    def glance(self, chunk: bytes) -> Judgement | None:
        if not self.opened(chunk) or not chunk.endswith(b"\n\n") or chunk.count(b"\n") != 3 or TAINT in chunk:
            return None
        return DELTA

    def opened(self, head: bytes | bytearray) -> bool:
        return head.startswith(self._NAME) and head[: head.find(b"\n")].endswith(b".delta")

    def judge(self, frame: bytes) -> Judgement:
        if judgement := self.glance(frame):
            return judgement
        data = sse.data_of(frame)
        event = parse(data)
        if event is None:
            return Judgement(delta=False, instead=self.fault()) if TAINT in data else PLAIN
        kind = event.get("type")
        if isinstance(kind, str) and kind.endswith(".delta"):
            return DELTA
        answer = event.get("response")
        response: dict[str, object] = answer if isinstance(answer, dict) else {}
        errors = (event.get("error"), response.get("error"))
        if kind in ("error", "response.failed") or any(error is not None for error in errors):
            return Judgement(delta=False, instead=self.fault())
        if kind == "response.created":
            self._response = {key: response[key] for key in ("id", "created_at", "model") if key in response}
        usage = response.get("usage")
        if kind in ("response.completed", "response.incomplete"):
            self._tally.finished = True
            if isinstance(usage, dict):
                self._tally.tokens_in_out(usage)
        return PLAIN

    def judge_tail(self, tail: bytes) -> None:
        # The long events repeat the whole answer; the last of them reports its usage. None of them is a delta.
        if usage := trailing_usage(tail):
            self._tally.finished = True
            self._tally.tokens_in_out(usage)

    def fault(self) -> bytes:
        self._tally.failed = True
        data: dict[str, object] = {"type": "error", "code": "bad_gateway", "message": "upstream error", "param": None}
        return sse.event(data, name="error")

    def ending(self, frame: bytes) -> bytes:
        number = (parse(sse.data_of(frame)) or {}).get("sequence_number", 0)
        prompt, completion = self._prompt_estimate, self._tally.deltas
        response = {
            **self._response,
            "object": "response",
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "error": None,
            "output": [],
            "usage": {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion},
        }
        data = {"type": "response.incomplete", "sequence_number": number, "response": response}
        return sse.event(data, name="response.incomplete")

    def closing(self, *, broken: bool) -> bytes:
        if self._tally.finished or self._tally.failed:
            return b""
        return (self.terminator if broken else b"") + self.fault()
