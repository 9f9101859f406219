"""`/v1/messages`, the Anthropic shape: `message_start` holds an estimate of the input, `message_delta` the counts.

The estimate is Ollama's own, a quarter of the bytes, and so is mostly wrong. An error after the first token leaves no
trace: the stream ends without `message_stop`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from gateway.demo.generation import Ask
from gateway.demo.go_json import Struct, encode, plain
from gateway.demo.models import Refused
from gateway.demo.native import Turn, echoed, prompt_tokens, tool_call
from gateway.demo.wire import EVENT_STREAM, JSON

if TYPE_CHECKING:
    from gateway.demo.generation import Answer, Call, Dialect, End
    from gateway.demo.go_json import Json
    from gateway.demo.models import Library
    from gateway.demo.wire import Headers

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


def refusal(status: int, message: str) -> tuple[bytes, str]:
    """The Anthropic error shape, and its content type."""
    error = {"type": _TYPES.get(status, "api_error"), "message": message}
    request_id = "req_" + hashlib.sha256(message.encode()).hexdigest()[:24]
    return encode({"type": "error", "error": error, "request_id": request_id}) + b"\n", JSON


def _text(content: object, kinds: tuple[str, ...] = ("text",)) -> str:
    if isinstance(content, str):
        return content
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    return "".join(str(block.get("text", "")) for block in blocks if block.get("type") in kinds)


def _turns(item: Json) -> list[Turn]:
    """A message, and before it the tool results that it carries, as Ollama orders them."""
    bound = Struct("MessageParam", item)
    content, role = plain(bound.anything("content")), bound.string("role").lower()
    blocks = content if isinstance(content, list) else []
    results = [block for block in blocks if isinstance(block, dict) and block.get("type") == "tool_result"]
    text = _text(content)
    turns = [Turn("tool", _text(block.get("content"))) for block in results]
    return turns + ([Turn(role, text)] if text else [])


def messages(value: Json, library: Library) -> tuple[Ask, Dialect]:
    bound = Struct("MessagesRequest", value)
    model, limit, items = bound.string("model"), bound.integer("max_tokens") or 0, bound.items("messages")
    if not model:
        raise Refused(400, "model is required")
    if limit <= 0:
        raise Refused(400, "max_tokens is required and must be positive")
    if not items:
        raise Refused(400, "messages is required")
    library.find(model, capability="completion", verb="chat")
    system = _text(plain(bound.anything("system")))
    turns = [Turn("system", system)] if system else []
    turns += [turn for item in items for turn in _turns(item)]
    thinking = plain(bound.anything("thinking"))
    ask = Ask(
        model,
        echoed(turns),
        prompt_tokens(*(turn.text for turn in turns)),
        bound.boolean("stream") or False,
        limit,
        tuple(str(plain(item)) for item in bound.items("stop_sequences")),
        tool_call(bound.items("tools"), turns),
        isinstance(thinking, dict) and thinking.get("type") == "enabled",
    )
    return ask, Messages(ask, max(1, sum(len(turn.role) + len(turn.text.encode()) for turn in turns) // 4))


class Messages:
    stream_type = EVENT_STREAM
    stream_headers: Headers = (("cache-control", "no-cache"), ("connection", "keep-alive"))
    whole_type = JSON

    def __init__(self, ask: Ask, estimate: int) -> None:
        self._id = "msg_" + hashlib.sha256(ask.text.encode()).hexdigest()[:24]
        self._model = ask.model
        self._estimate = estimate
        self._started = False
        self._called = False
        self._block = -1  # index of the block that is open or was last
        self._open = ""  # its type

    def _opening(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        return _event("message_start", message=self._message([], None, self._estimate, 0))

    def _turn_to(self, kind: str, block: dict[str, object]) -> bytes:
        """Close the block that is open, and open one of that type."""
        if self._open == kind:
            return b""
        events = self._close()
        self._block += 1
        self._open = kind
        return events + _event("content_block_start", index=self._block, content_block={"type": kind, **block})

    def _close(self) -> bytes:
        was, self._open = self._open, ""
        return _event("content_block_stop", index=self._block) if was else b""

    def _delta(self, **delta: object) -> bytes:
        return _event("content_block_delta", index=self._block, delta=delta)

    def content(self, text: str) -> bytes:
        opening = self._opening() + self._turn_to("text", {"text": ""})
        return opening + self._delta(type="text_delta", text=text)

    def thinking(self, text: str) -> bytes:
        opening = self._opening() + self._turn_to("thinking", {"thinking": ""})
        return opening + self._delta(type="thinking_delta", thinking=text)

    def tool(self, call: Call) -> bytes:
        self._called = True
        opening = self._opening() + self._turn_to("tool_use", {"id": call.id, "name": call.name, "input": {}})
        arguments = encode(call.arguments).decode()
        return opening + self._delta(type="input_json_delta", partial_json=arguments) + self._close()

    def final(self, end: End) -> bytes:
        events = self._opening() + self._close()
        usage = {"input_tokens": end.prompt_tokens, "output_tokens": end.completion_tokens}
        events += _event("message_delta", delta={"stop_reason": _stop_reason(end, self._called)}, usage=usage)
        return events + _event("message_stop")

    def broken(self, message: str) -> bytes:
        return b""

    def whole(self, answer: Answer, end: End) -> bytes:
        content: list[dict[str, object]] = []
        if answer.thoughts:
            content.append({"type": "thinking", "thinking": answer.thinking})
        if answer.texts:
            content.append({"type": "text", "text": answer.text})
        if answer.call:
            call = answer.call
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments})
        reason = _stop_reason(end, answer.call is not None)
        return encode(self._message(content, reason, end.prompt_tokens, end.completion_tokens)) + b"\n"

    def reports(self, stream: bool) -> bool:
        return True

    def _message(
        self, content: list[dict[str, object]], reason: str | None, prompt: int, completion: int
    ) -> dict[str, object]:
        message: dict[str, object] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
        }
        if reason:
            message["stop_reason"] = reason
        return message | {"usage": {"input_tokens": prompt, "output_tokens": completion}}


def _event(name: str, **fields: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), encode({"type": name, **fields}))


def _stop_reason(end: End, called: bool) -> str:
    return "tool_use" if called else _STOP_REASONS.get(end.reason, "stop_sequence")
