"""`/v1/chat/completions` and `/v1/completions` as Ollama's OpenAI layer writes them over its native answers.

Streams are asked for, not the default. The usage comes in one more chunk without choices, only if
`stream_options.include_usage` asks for it; `/v1/completions` then also puts a zero usage on every chunk before. An
error after the first token loses its text: it becomes an empty chunk of no model, and the stream ends without `[DONE]`.
`max_completion_tokens`, `n` and `best_of` are unknown to Ollama, and so they are here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.demo.generation import Ask
from gateway.demo.go_json import Struct, encode, plain
from gateway.demo.models import Refused
from gateway.demo.native import Turn, echoed, prompt_tokens, stops, tool_call
from gateway.demo.wire import EVENT_STREAM, JSON

if TYPE_CHECKING:
    from gateway.demo.generation import Answer, Call, Dialect, End
    from gateway.demo.go_json import Json
    from gateway.demo.models import Library
    from gateway.demo.wire import Headers

_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
_DONE = b"data: [DONE]\n\n"


def refusal(status: int, message: str) -> tuple[bytes, str]:
    """The OpenAI error shape, and its content type."""
    error = {"message": message, "type": _TYPES.get(status, "api_error"), "param": None, "code": None}
    return encode({"error": error}) + b"\n", JSON


def usage(end: End) -> dict[str, int]:
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "total_tokens": end.tokens,
    }


def _text(content: object, has_calls: bool) -> str:
    """The text of a message's `content`: a string, or parts. Raises Refused."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        if content is None and has_calls:
            return ""
        raise Refused(400, f"invalid message content type: {'<nil>' if content is None else type(content).__name__}")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind != "image_url":
            raise Refused(400, "invalid message format")
    return " ".join(texts)


def _asks_usage(bound: Struct) -> bool:
    options = Struct("StreamOptions", bound.anything("stream_options"))
    return options.boolean("include_usage") or False


def chat(value: Json, library: Library) -> tuple[Ask, Dialect]:
    bound = Struct("ChatCompletionRequest", value)
    turns = []
    for item in bound.items("messages"):
        message = Struct("Message", item)
        text = _text(plain(message.anything("content")), bool(message.items("tool_calls")))
        turns.append(Turn(message.string("role").lower(), text))
    if not turns:
        raise Refused(400, "[] is too short - 'messages'")
    model = bound.string("model")
    library.find(model, capability="completion", verb="chat")
    ask = Ask(
        model,
        echoed(turns),
        prompt_tokens(*(turn.text for turn in turns)),
        bound.boolean("stream") or False,
        bound.integer("max_tokens"),
        stops(plain(bound.anything("stop"))),
        tool_call(bound.items("tools"), turns),
        bound.string("reasoning_effort") in ("low", "medium", "high", "max"),
    )
    return ask, ChatCompletions(ask, include_usage=_asks_usage(bound))


def completions(value: Json, library: Library) -> tuple[Ask, Dialect]:
    bound = Struct("CompletionRequest", value)
    prompt, suffix, model = bound.string("prompt"), bound.string("suffix"), bound.string("model")
    library.find(model, capability="completion", verb="generate")
    ask = Ask(
        model,
        prompt,
        prompt_tokens(prompt, suffix) if prompt else 0,
        bound.boolean("stream") or False,
        bound.integer("max_tokens"),
        stops(plain(bound.anything("stop"))),
        reason=None if prompt else "load",
    )
    return ask, Completions(ask, include_usage=_asks_usage(bound))


def _identifier(prefix: str) -> str:
    return f"{prefix}-{time.time_ns() // 1000 % 999}"  # three digits, as Ollama's: no two need differ


class ChatCompletions:
    """`/v1/chat/completions`."""

    stream_type = EVENT_STREAM
    stream_headers: Headers = ()
    whole_type = JSON

    def __init__(self, ask: Ask, *, include_usage: bool) -> None:
        self._model = ask.model
        self._id = _identifier("chatcmpl")
        self._include_usage = include_usage
        self._called = False
        self._head = self._frame(ask.model) + b',"choices":['
        self._delta = self._head + b'{"index":0,"delta":{"role":"assistant","content":'

    def _frame(self, model: str) -> bytes:
        return b'data: {"id":"%s","object":"chat.completion.chunk","created":%d,"model":%s,"system_fingerprint":%s' % (
            self._id.encode(),
            time.time(),
            encode(model),
            b'"fp_ollama"',
        )

    def content(self, text: str) -> bytes:
        return self._delta + encode(text) + b'},"finish_reason":null}]}\n\n'

    def thinking(self, text: str) -> bytes:
        return self._delta + b'"","reasoning":' + encode(text) + b'},"finish_reason":null}]}\n\n'

    def tool(self, call: Call) -> bytes:
        self._called = True
        return self._delta + b'"","tool_calls":' + encode(_calls(call)) + b'},"finish_reason":null}]}\n\n'

    def final(self, end: End) -> bytes:
        reason = "tool_calls" if self._called else end.reason
        chunks = self._delta + b'""},"finish_reason":%s}]}\n\n' % encode(reason)
        if self._include_usage:
            chunks += self._head + b'],"usage":' + encode(usage(end)) + b"}\n\n"
        return chunks + _DONE

    def broken(self, message: str) -> bytes:
        empty = b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
        return self._frame("") + empty

    def whole(self, answer: Answer, end: End) -> bytes:
        message: dict[str, object] = {"role": "assistant", "content": answer.text}
        if answer.thoughts:
            message["reasoning"] = answer.thinking
        if answer.call:
            message["tool_calls"] = _calls(answer.call)
        reason = "tool_calls" if answer.call else end.reason
        completion = {
            "id": self._id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self._model,
            "system_fingerprint": "fp_ollama",
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": usage(end),
        }
        return encode(completion) + b"\n"

    def reports(self, stream: bool) -> bool:
        return self._include_usage or not stream


class Completions:
    """`/v1/completions`."""

    stream_type = EVENT_STREAM
    stream_headers: Headers = ()
    whole_type = JSON

    def __init__(self, ask: Ask, *, include_usage: bool) -> None:
        self._model = ask.model
        self._id = _identifier("cmpl")
        self._include_usage = include_usage
        self._zeros = b',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}' if include_usage else b""

    def _chunk(self, choices: bytes, tail: bytes, model: str | None = None) -> bytes:
        return (
            b'data: {"id":"%s","object":"text_completion","created":%d,"choices":%s,"model":%s,'
            b'"system_fingerprint":"fp_ollama"%s}\n\n'
            % (self._id.encode(), time.time(), choices, encode(self._model if model is None else model), tail)
        )

    def content(self, text: str) -> bytes:
        return self._chunk(b'[{"text":%s,"index":0,"finish_reason":null}]' % encode(text), self._zeros)

    def thinking(self, text: str) -> bytes:
        return self.content("")  # Ollama's completions have no place for thinking

    def tool(self, call: Call) -> bytes:
        raise AssertionError("completions bind no tools")

    def final(self, end: End) -> bytes:
        last = self._chunk(b'[{"text":"","index":0,"finish_reason":%s}]' % encode(end.reason), self._zeros)
        if self._include_usage:
            last += self._chunk(b"[]", b',"usage":' + encode(usage(end)))
        return last + _DONE

    def broken(self, message: str) -> bytes:
        return self._chunk(b'[{"text":"","index":0,"finish_reason":null}]', self._zeros, model="")

    def whole(self, answer: Answer, end: End) -> bytes:
        completion = {
            "id": self._id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._model,
            "system_fingerprint": "fp_ollama",
            "choices": [{"text": answer.text, "index": 0, "finish_reason": end.reason}],
            "usage": usage(end),
        }
        return encode(completion) + b"\n"

    def reports(self, stream: bool) -> bool:
        return self._include_usage or not stream


def _calls(call: Call) -> list[dict[str, object]]:
    function = {"name": call.name, "arguments": encode(call.arguments).decode()}
    return [{"id": call.id, "index": 0, "type": "function", "function": function}]
