"""`/api/embed`, `/api/embeddings` (which has no counts at all) and `/v1/embeddings`.

A vector is a digest of its text, of length one: equal texts are equal, others are far apart, nothing more is meant.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import struct
from typing import TYPE_CHECKING

from gateway.demo.generation import Ask
from gateway.demo.go_json import Struct, encode, plain
from gateway.demo.models import Refused
from gateway.demo.native import prompt_tokens
from gateway.demo.wire import JSON, JSON_UTF8, NDJSON

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.demo.generation import Answer, Call, Dialect, End
    from gateway.demo.go_json import Json
    from gateway.demo.models import Library
    from gateway.demo.wire import Headers

_REASON = "embed"  # nothing is generated: `Ask.reason`


@functools.lru_cache(maxsize=256)
def vector(text: str, dimensions: int) -> tuple[float, ...]:
    raw = [byte - 127.5 for byte in hashlib.shake_256(text.encode()).digest(dimensions)]
    length = math.sqrt(sum(value * value for value in raw))
    return tuple(round(value / length, 8) for value in raw)


def _inputs(value: object) -> list[str]:
    """The texts of an `input`. Raises Refused."""
    if isinstance(value, str):
        return [value] if value else []
    items = [] if value is None else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise Refused(400, "invalid input type")
    return items


def _dimensions(bound: Struct, full: int) -> int:
    asked = bound.integer("dimensions") or 0
    return asked if 0 < asked < full else full


def _ask(model: str, texts: list[str]) -> Ask:
    return Ask(model, texts[-1] if texts else "", prompt_tokens(*texts) if texts else 0, stream=False, reason=_REASON)


def embed(value: Json, library: Library) -> tuple[Ask, Dialect]:
    bound = Struct("EmbedRequest", value)
    name = bound.string("model")
    texts = _inputs(plain(bound.anything("input")))
    full = library.find(name).family.embedding
    bound.boolean("truncate")
    bound.mapping("options")
    vectors = [vector(text, _dimensions(bound, full)) for text in texts]

    def write(end: End) -> bytes:
        counts = {"total_duration": end.total, "load_duration": end.load, "prompt_eval_count": end.prompt_tokens}
        told = {key: count for key, count in counts.items() if count and vectors}
        return encode({"model": name, "embeddings": vectors, **told})

    return _ask(name, texts), Vectors(write)


def embeddings(value: Json, library: Library) -> tuple[Ask, Dialect]:
    bound = Struct("EmbeddingRequest", value)
    name, prompt = bound.string("model"), bound.string("prompt")
    full = library.find(name).family.embedding
    bound.mapping("options")
    one = vector(prompt, full) if prompt else ()
    return _ask(name, [prompt] if prompt else []), Vectors(lambda end: encode({"embedding": one}), counted=False)


def openai(value: Json, library: Library) -> tuple[Ask, Dialect]:
    bound = Struct("EmbedRequest", value)
    name, form = bound.string("model"), bound.string("encoding_format").lower()
    if form not in ("", "float", "base64"):
        raise Refused(400, f"Invalid value for 'encoding_format' = {form}. Supported values: ['float', 'base64'].")
    given = plain(bound.anything("input"))
    if given is None or given == []:
        raise Refused(400, "invalid input")
    texts = [""] if given == "" else _inputs(given)
    full = library.find(name).family.embedding
    vectors = [vector(text, _dimensions(bound, full)) for text in texts]

    def write(end: End) -> bytes:
        data = [
            {"object": "embedding", "embedding": _in_base64(one) if form == "base64" else one, "index": index}
            for index, one in enumerate(vectors)
        ]
        usage = {"prompt_tokens": end.prompt_tokens, "total_tokens": end.prompt_tokens}
        return encode({"object": "list", "data": data, "model": name, "usage": usage}) + b"\n"

    return _ask(name, texts), Vectors(write, JSON)


class Vectors:
    """The three of them as a dialect: one object, and no tokens."""

    stream_type = NDJSON  # never used
    stream_headers: Headers = ()

    def __init__(self, write: Callable[[End], bytes], whole_type: str = JSON_UTF8, *, counted: bool = True) -> None:
        self.whole_type = whole_type
        self._write = write
        self._counted = counted

    def whole(self, answer: Answer, end: End) -> bytes:
        return self._write(end)

    def reports(self, stream: bool) -> bool:
        return self._counted

    def content(self, text: str) -> bytes:
        raise AssertionError("embeddings have no tokens")

    def thinking(self, text: str) -> bytes:
        raise AssertionError("embeddings have no tokens")

    def tool(self, call: Call) -> bytes:
        raise AssertionError("embeddings have no tokens")

    def final(self, end: End) -> bytes:
        raise AssertionError("embeddings do not stream")

    def broken(self, message: str) -> bytes:
        raise AssertionError("embeddings do not stream")


def _in_base64(one: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(one)}f", *one)).decode()
