"""`/v1/responses`: named SSE events, or one object. The counts are in `response.completed`.

An error after the first token leaves no trace: the stream ends without `response.completed`.
"""

from __future__ import annotations

import json
import time
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

_TEXT_PARTS = ("input_text", "output_text")


def _turn(item: Json) -> Turn | None:
    """One item of `input`: a message, a call, or a call's result. Raises Refused."""
    bound = Struct("ResponsesInputItem", item)
    role = bound.string("role").lower()
    match bound.string("type") or ("message" if role else ""):
        case "message":
            content = plain(bound.anything("content"))
            if isinstance(content, str):
                return Turn(role, content)
            texts = []
            for part in content if isinstance(content, list) else []:
                kind = part.get("type") if isinstance(part, dict) else None
                if kind in _TEXT_PARTS:
                    texts.append(str(part.get("text", "")))
                elif kind != "input_image":
                    raise Refused(400, f"unknown content type: {kind}")
            return Turn(role, "".join(texts))
        case "function_call":
            return Turn("assistant", "")
        case "function_call_output":
            return Turn("tool", bound.string("output"))
        case "reasoning":
            return None
        case other:
            raise Refused(400, f"unknown input item type: {other}")


def responses(value: Json, library: Library) -> tuple[Ask, Dialect]:
    bound = Struct("ResponsesRequest", value)
    given, instructions = bound.anything("input"), bound.string("instructions")
    turns = [Turn("system", instructions)] if instructions else []
    if isinstance(given, str):
        turns.append(Turn("user", bound.string("input")))
    else:
        turns += [turn for turn in map(_turn, bound.items("input")) if turn]
    model = bound.string("model")
    library.find(model, capability="completion", verb="chat")
    ask = Ask(
        model,
        echoed(turns),
        prompt_tokens(*(turn.text for turn in turns)),
        bound.boolean("stream", pointer=True) or False,
        bound.integer("max_output_tokens"),
        call=tool_call(bound.items("tools"), turns),
    )
    return ask, Responses(ask, instructions, bound.integer("max_output_tokens"))


class Responses:
    stream_type = EVENT_STREAM
    stream_headers: Headers = (("cache-control", "no-cache"), ("connection", "keep-alive"))
    whole_type = JSON

    def __init__(self, ask: Ask, instructions: str, limit: int | None) -> None:
        number = time.time_ns() // 1000 % 999_999
        self._id = f"resp_{number}"
        self._item = f"msg_{number}"
        self._model = ask.model
        self._instructions = instructions or None
        self._limit = limit
        self._sequence = 0
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._call: dict[str, object] | None = None

    def _event(self, name: str, **fields: object) -> bytes:
        fields |= {"type": name, "sequence_number": self._sequence}
        self._sequence += 1
        # Go writes the keys of a map in order.
        return b"event: %s\ndata: %s\n\n" % (name.encode(), encode(dict(sorted(fields.items()))))

    def _opening(self) -> bytes:
        if self._sequence:
            return b""
        start = self._response("in_progress", [], None)
        return self._event("response.created", response=start) + self._event("response.in_progress", response=start)

    @property
    def _index(self) -> int:
        """The place of the answer in `output`: thinking, if any, comes first."""
        return 1 if self._thoughts else 0

    def thinking(self, text: str) -> bytes:
        events = self._opening()
        item = {"id": f"rs_{self._id}", "type": "reasoning", "summary": []}
        if not self._thoughts:
            events += self._event("response.output_item.added", output_index=0, item=item)
        self._thoughts.append(text)
        delta = {"item_id": item["id"], "output_index": 0, "summary_index": 0, "delta": text}
        return events + self._event("response.reasoning_summary_text.delta", **delta)

    def _close_thinking(self) -> bytes:
        if not self._thoughts or self._texts or self._call:
            return b""
        item = self._reasoning()
        done = {"item_id": item["id"], "output_index": 0, "summary_index": 0, "text": "".join(self._thoughts)}
        events = self._event("response.reasoning_summary_text.done", **done)
        return events + self._event("response.output_item.done", output_index=0, item=item)

    def content(self, text: str) -> bytes:
        events = self._opening() + self._close_thinking()
        at = {"item_id": self._item, "output_index": self._index, "content_index": 0}
        if not self._texts:
            item = {"id": self._item, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
            events += self._event("response.output_item.added", output_index=self._index, item=item)
            events += self._event("response.content_part.added", **at, part=_part(""))
        self._texts.append(text)
        return events + self._event("response.output_text.delta", **at, delta=text, logprobs=[])

    def tool(self, call: Call) -> bytes:
        events = self._opening() + self._close_thinking()
        at = {"output_index": self._index}
        self._call = item = self._function(call)
        by_id = {"item_id": item["id"], **at}
        arguments = item["arguments"]
        started = {**item, "status": "in_progress", "arguments": ""}
        events += self._event("response.output_item.added", **at, item=started)
        events += self._event("response.function_call_arguments.delta", **by_id, delta=arguments)
        events += self._event("response.function_call_arguments.done", **by_id, arguments=arguments)
        return events + self._event("response.output_item.done", **at, item=item)

    def final(self, end: End) -> bytes:
        events = self._opening() + self._close_thinking()
        output: list[object] = [self._reasoning()] if self._thoughts else []
        if self._call:
            output.append(self._call)
        elif self._texts:
            text, item = "".join(self._texts), self._message()
            at = {"item_id": self._item, "output_index": self._index, "content_index": 0}
            events += self._event("response.output_text.done", **at, text=text, logprobs=[])
            events += self._event("response.content_part.done", **at, part=_part(text))
            events += self._event("response.output_item.done", output_index=self._index, item=item)
            output.append(item)
        return events + self._event("response.completed", response=self._response("completed", output, end))

    def broken(self, message: str) -> bytes:
        return b""

    def whole(self, answer: Answer, end: End) -> bytes:
        self._texts, self._thoughts = answer.texts, answer.thoughts
        output: list[object] = [self._reasoning()] if answer.thoughts else []
        output.append(self._function(answer.call) if answer.call else self._message())
        return encode(self._response("completed", output, end)) + b"\n"

    def reports(self, stream: bool) -> bool:
        return True

    def _reasoning(self) -> dict[str, object]:
        thought = "".join(self._thoughts)
        summary = [{"type": "summary_text", "text": thought}]
        return {"id": f"rs_{self._id}", "type": "reasoning", "summary": summary, "encrypted_content": thought}

    def _message(self) -> dict[str, object]:
        content = [_part("".join(self._texts))]
        return {"id": self._item, "type": "message", "status": "completed", "role": "assistant", "content": content}

    def _function(self, call: Call) -> dict[str, object]:
        return {
            "id": f"fc_{self._id}_0",
            "type": "function_call",
            "status": "completed",
            "call_id": call.id,
            "name": call.name,
            "arguments": json.dumps(call.arguments, separators=(",", ":")),
        }

    def _response(self, status: str, output: list[object], end: End | None) -> dict[str, object]:
        now = int(time.time())
        usage = end and {
            "input_tokens": end.prompt_tokens,
            "output_tokens": end.completion_tokens,
            "total_tokens": end.tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        return {
            "id": self._id,
            "object": "response",
            "created_at": now,
            "completed_at": now if end else None,
            "status": status,
            "incomplete_details": None,
            "model": self._model,
            "previous_response_id": None,
            "instructions": self._instructions,
            "output": output,
            "error": None,
            "tools": [],
            "tool_choice": "auto",
            "truncation": "disabled",
            "parallel_tool_calls": True,
            "text": {"format": {"type": "text"}},
            "top_p": 1.0,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": 1.0,
            "reasoning": None,
            "usage": usage,
            "max_output_tokens": self._limit,
            "max_tool_calls": None,
            "store": False,
            "background": False,
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
