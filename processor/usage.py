"""Which meter reads an answer: by endpoint, content type and content encoding.

A meter is fed the response body as it passes. It returns None for a chunk that passes unchanged, which is nearly
every chunk, or the bytes to send instead. It tells what was used at any moment, so that an answer that ends early can
still be charged for what it was.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Protocol

from processor import document, ndjson
from processor.chunks import FAULT, Chunks
from processor.decoding import Inflater, inflater
from processor.document import DocumentMeter
from processor.events import Messages, Responses
from processor.frames import Dialect, StreamMeter
from processor.tally import Tally, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Meter", "Usage", "meter_for"]


class Meter(Protocol):
    """Reads one answer."""

    cut: bool  # the answer passed its cap and was ended; what comes after is swallowed

    def feed(self, chunk: bytes, end: bool) -> bytes | None:
        """Take the next chunk; `end` with the last, which may be empty. None: it passes as it is."""

    def usage(self) -> Usage:
        """What was used so far."""


class Observer:
    """Reads a compressed answer. It can not edit one, so nothing is hidden, cleaned or cut."""

    def __init__(self, meter: Meter, encoding: Inflater, tally: Tally) -> None:
        self.cut = False
        self._meter = meter
        self._encoding = encoding
        self._tally = tally

    def feed(self, chunk: bytes, end: bool) -> None:
        if not self._tally.readable:
            return
        try:
            for piece in self._encoding.pieces(chunk):
                self._meter.feed(piece, end=False)
        except ValueError:
            self._tally.readable = False  # what was read before it broke still counts
            return
        if end:
            self._meter.feed(b"", end=True)

    def usage(self) -> Usage:
        return self._meter.usage()


class Blind:
    """Stands where nothing can be read: an encoding that we do not know."""

    cut = False

    def feed(self, chunk: bytes, end: bool) -> None:
        pass

    def usage(self) -> Usage:
        return Tally(readable=False).usage()


_NATIVE_TEXT = {"/api/chat": "content", "/api/generate": "response"}
_CHUNKED = {  # whether it is chat
    "/v1/chat/completions": True,
    "/v1/chat/secure_completion": True,  # it is sealed after it was read
    "/v1/completions": False,
}
_DOCUMENTS: dict[str, Callable[[Tally, dict[str, object]], None]] = {
    "/api/chat": document.read_native,
    "/api/generate": document.read_native,
    "/api/embed": document.read_embed,
    "/api/embeddings": document.read_embed,
    "/v1/chat/completions": document.read_choices,
    "/v1/chat/secure_completion": document.read_choices,
    "/v1/completions": document.read_choices,
    "/v1/embeddings": document.read_embeddings,
    "/v1/responses": document.read_tokens,
    "/v1/messages": document.read_tokens,
}


def meter_for(
    endpoint_path: str,
    *,
    content_type: str,
    content_encoding: str,
    hide_usage: bool,
    cap: int,
    prompt_estimate: int = 0,
) -> Meter:
    """The meter for a good answer (2xx) of a metered endpoint; KeyError for any other endpoint.

    `cap` is in tokens of completion. `prompt_estimate` is what a stream that is cut says of its prompt.
    """
    if endpoint_path.startswith("/openai/"):  # a browser session's name for the same
        endpoint_path = "/v1/" + endpoint_path.removeprefix("/openai/")
    tally = Tally()
    try:
        encoding = inflater(content_encoding)
    except ValueError:
        return Blind()
    limit = sys.maxsize if encoding else max(cap, 0)
    kind = content_type.partition(";")[0].strip().lower()
    dialect = _dialect(endpoint_path, kind, tally, hide_usage=hide_usage, prompt_estimate=prompt_estimate)
    meter: Meter
    if dialect:
        meter = StreamMeter(dialect, tally, limit)
    else:
        fault = ndjson.FAULT if endpoint_path.startswith("/api/") else json.dumps(FAULT).encode() + b"\n"
        meter = DocumentMeter(tally, read=_DOCUMENTS[endpoint_path], fault=fault, cap=cap)
    return Observer(meter, encoding, tally) if encoding else meter


def _dialect(path: str, kind: str, tally: Tally, *, hide_usage: bool, prompt_estimate: int) -> Dialect | None:
    """The dialect of a streamed answer; None for a document."""
    if path in _NATIVE_TEXT:
        if kind == "application/json":
            return None
        return ndjson.Native(tally, text=_NATIVE_TEXT[path], prompt_estimate=prompt_estimate)
    if kind != "text/event-stream":
        return None
    if path in _CHUNKED:
        return Chunks(tally, chat=_CHUNKED[path], hide_usage=hide_usage, prompt_estimate=prompt_estimate)
    if path == "/v1/messages":
        return Messages(tally, prompt_estimate=prompt_estimate)
    if path == "/v1/responses":
        return Responses(tally, prompt_estimate=prompt_estimate)
    return None
