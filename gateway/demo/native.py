"""`/api/chat` and `/api/generate`: NDJSON by default, one object when `stream` is false.

Field order, presence and types follow Ollama's api/types.go: zero counts and durations are absent.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.demo.clock import Stamps
from gateway.demo.generation import Ask, Call
from gateway.demo.go_json import GoError, Struct, decode, encode, plain
from gateway.demo.models import Refused
from gateway.demo.wire import JSON_UTF8, NDJSON

if TYPE_CHECKING:
    from gateway.demo.generation import Answer, Dialect, End
    from gateway.demo.go_json import Json
    from gateway.demo.models import Library
    from gateway.demo.wire import Headers

_STAMPS = Stamps()
_DURATION = re.compile(r"[-+]?(?:0|(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: its role in lower case, and its text."""

    role: str
    text: str


def body(raw: bytes) -> Json:
    """The body's first JSON value. Raises Refused."""
    try:
        return decode(raw)
    except GoError as error:
        raise Refused(400, "missing request body" if str(error) == "EOF" else str(error)) from error


def prompt_tokens(*texts: str) -> int:
    return max(1, sum(len(text.split()) for text in texts))


def echoed(turns: list[Turn]) -> str:
    """The last user message, else the last message."""
    users = [turn for turn in turns if turn.role == "user"]
    return (users or turns)[-1].text if turns else ""


def tool_call(tools: list[Json], turns: list[Turn]) -> Call | None:
    """A call of the first tool, if the last message is the user's and speaks of a tool."""
    if not tools or not turns or turns[-1].role != "user" or "tool" not in turns[-1].text.lower():
        return None
    tool = _mapping(plain(tools[0]))
    # Native and /v1/chat/completions tools nest under "function"; the other dialects do not.
    function = _mapping(tool.get("function", tool))
    schema = _mapping(function.get("parameters") or function.get("input_schema"))
    required = schema.get("required")
    wanted = required if isinstance(required, list) else list(_mapping(schema.get("properties")))[:1]
    return Call(str(function.get("name", "tool")), {str(name): "echo" for name in wanted})


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def number(options: dict[str, object], name: str) -> int | None:
    """An integer option: Ollama takes any number and cuts it."""
    value = options.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(400, f'option "{name}" must be of type integer')
    return int(value)


def stops(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _unloads(value: object) -> bool:
    """Whether that `keep_alive` is a zero duration. Raises Refused on one that Go cannot read."""
    if isinstance(value, str):
        if not _DURATION.fullmatch(value):
            raise Refused(400, f'time: invalid duration "{value}"')
        return not re.search("[1-9]", value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise Refused(400, f"Unsupported type: '{value}'")
    return value == 0 and value is not None


def _ask(bound: Struct, turns: list[Turn], prompt: int, call: Call | None) -> Ask:
    options = bound.mapping("options")
    unload = _unloads(plain(bound.anything("keep_alive")))
    empty = not turns
    for name in ("shift", "truncate", "logprobs"):
        bound.boolean(name)
    return Ask(
        bound.string("model"),
        echoed(turns),
        0 if empty else prompt,
        not empty and bound.boolean("stream", pointer=True) is not False,
        number(options, "num_predict"),
        stops(options.get("stop")),
        call,
        bool(plain(bound.anything("think"))),
        ("unload" if unload else "load") if empty else None,
    )


def chat(value: Json, library: Library) -> tuple[Ask, Dialect]:
    bound = Struct("ChatRequest", value)
    library.find(bound.string("model"), capability="completion", verb="chat")
    turns = []
    for item in bound.items("messages"):
        message = Struct("Message", item)
        message.items("images")
        message.items("tool_calls")
        turns.append(Turn(message.string("role").lower(), message.string("content")))
    call = tool_call(bound.items("tools"), turns)
    ask = _ask(bound, turns, prompt_tokens(*(turn.text for turn in turns)), call)
    return ask, Chat(ask)


def generate(value: Json, library: Library) -> tuple[Ask, Dialect]:
    bound = Struct("GenerateRequest", value)
    library.find(bound.string("model"), capability="completion", verb="generate")
    prompt, system, suffix = bound.string("prompt"), bound.string("system"), bound.string("suffix")
    raw = bound.boolean("raw") or False
    bound.string("template")
    bound.items("images")
    context = bound.items("context")
    if raw and (system or context or bound.string("template")):
        raise Refused(400, "raw mode does not support template, system, or context")
    turns = [Turn("user", prompt)] if prompt else []
    ask = _ask(bound, turns, prompt_tokens(prompt, system, suffix), None)
    return ask, Generate(ask, raw=raw)


def refusal(status: int, message: str) -> tuple[bytes, str]:
    """The native error shape, and its content type."""
    return encode({"error": message}), JSON_UTF8


class Chat:
    """`/api/chat`."""

    stream_type = NDJSON
    stream_headers: Headers = ()
    whole_type = JSON_UTF8

    def __init__(self, ask: Ask) -> None:
        self._head = b'{"model":' + encode(ask.model) + b',"created_at":"'

    def content(self, text: str) -> bytes:
        message = b'","message":{"role":"assistant","content":%s},"done":false}\n' % encode(text)
        return self._head + _STAMPS.now() + message

    def thinking(self, text: str) -> bytes:
        message = b'","message":{"role":"assistant","content":"","thinking":%s},"done":false}\n' % encode(text)
        return self._head + _STAMPS.now() + message

    def tool(self, call: Call) -> bytes:
        message = b'","message":{"role":"assistant","content":"","tool_calls":%s},"done":false}\n' % _calls(call)
        return self._head + _STAMPS.now() + message

    def final(self, end: End) -> bytes:
        return self._head + _STAMPS.now() + b'","message":{"role":"assistant","content":""}' + _done(end) + b"\n"

    def broken(self, message: str) -> bytes:
        return encode({"error": message}) + b"\n"

    def whole(self, answer: Answer, end: End) -> bytes:
        message = b'","message":{"role":"assistant","content":' + encode(answer.text)
        if answer.thoughts:
            message += b',"thinking":' + encode(answer.thinking)
        if answer.call:
            message += b',"tool_calls":' + _calls(answer.call)
        return self._head + _STAMPS.now() + message + b"}" + _done(end)

    def reports(self, stream: bool) -> bool:
        return True


class Generate:
    """`/api/generate`: the same with a flat `response`, and a `context` of token numbers at the end."""

    stream_type = NDJSON
    stream_headers: Headers = ()
    whole_type = JSON_UTF8

    def __init__(self, ask: Ask, *, raw: bool) -> None:
        self._head = b'{"model":' + encode(ask.model) + b',"created_at":"'
        self._raw = raw or ask.reason is not None

    def content(self, text: str) -> bytes:
        return self._head + _STAMPS.now() + b'","response":%s,"done":false}\n' % encode(text)

    def thinking(self, text: str) -> bytes:
        return self._head + _STAMPS.now() + b'","response":"","thinking":%s,"done":false}\n' % encode(text)

    def tool(self, call: Call) -> bytes:
        raise AssertionError("generate binds no tools")

    def final(self, end: End) -> bytes:
        return self._head + _STAMPS.now() + b'","response":""' + _done(end, self._context(end)) + b"\n"

    def broken(self, message: str) -> bytes:
        return encode({"error": message}) + b"\n"

    def whole(self, answer: Answer, end: End) -> bytes:
        response = b'","response":' + encode(answer.text)
        if answer.thoughts:
            response += b',"thinking":' + encode(answer.thinking)
        return self._head + _STAMPS.now() + response + _done(end, self._context(end))

    def reports(self, stream: bool) -> bool:
        return True

    def _context(self, end: End) -> bytes:
        if self._raw or not end.tokens:
            return b""
        return b',"context":' + json.dumps(list(range(1, end.tokens + 1)), separators=(",", ":")).encode()


def _calls(call: Call) -> bytes:
    function = {"index": 0, "name": call.name, "arguments": call.arguments}
    return encode([{"id": call.id, "function": function}])


def _done(end: End, context: bytes = b"") -> bytes:
    metrics = {
        "total_duration": end.total,
        "load_duration": end.load,
        "prompt_eval_count": end.prompt_tokens,
        "prompt_eval_cached_count": end.cached,
        "prompt_eval_duration": end.prompt_eval,
        "eval_count": end.completion_tokens,
        "eval_duration": end.eval,
    }
    if end.reason in ("load", "unload"):
        metrics = {}
    tail = "".join(f',"{name}":{value}' for name, value in metrics.items() if value)
    return b',"done":true,"done_reason":"%s"%s%s}' % (end.reason.encode(), context, tail.encode())
