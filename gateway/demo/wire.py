"""HTTP at its edges: a request read once into a value, an answer written in the pieces that the controls ask for.

A token is one line (or one SSE event) and, unless a control says otherwise, one write: Ollama flushes after each. Go's
server sends the end of the body after the handler has returned, so the last line and the end are two writes here too.
"""

from __future__ import annotations

import asyncio
import itertools
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from gateway.demo.controls import NONE, Controls
from gateway.demo.models import Refused

Scope: TypeAlias = MutableMapping[str, Any]  # ASGI's own shape: the values are of any type
Message: TypeAlias = MutableMapping[str, Any]  # the same
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = tuple[tuple[str, str], ...]

TRANSPORT = "demo.transport"  # the scope extension under which the server lends us the connection
NDJSON = "application/x-ndjson"
EVENT_STREAM = "text/event-stream"
JSON = "application/json"
JSON_UTF8 = "application/json; charset=utf-8"
_DECOMPRESSED = 20 << 20  # Ollama's own limit on a decompressed body
_GO_BUFFER = 2048  # net/http states a length only for an answer that fits its buffer
_ODD = (7, 1, 23, 2, 61, 3)  # sizes of the writes that a split line is cut into
_MERGED = 4  # lines in a merged write


class ClientGone(Exception):
    """The client closed the connection."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str  # percent-decoded: gin matches routes on this one
    raw_path: str
    query: str
    headers: Headers
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    def decompressed(self) -> bytes:
        """The body as the /v1 endpoints read it. Raises Refused."""
        if self.header("content-encoding") != "gzip":
            return self.body
        inflate = zlib.decompressobj(wbits=31)
        try:
            body = inflate.decompress(self.body, _DECOMPRESSED)
        except zlib.error as error:
            raise Refused(400, "gzip: invalid header") from error
        if inflate.unconsumed_tail:
            raise Refused(400, "http: request body too large")
        if not inflate.eof:
            raise Refused(400, "unexpected EOF")
        return body


async def read(scope: Scope, receive: Receive) -> Request:
    """The whole request. Raises ClientGone when it ends too early."""
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
    raw_path = scope["raw_path"].decode("latin-1")
    return Request(scope["method"], scope["path"], raw_path, scope["query_string"].decode("latin-1"), headers, body)


async def gone(receive: Receive) -> None:
    """Raise ClientGone when the client is."""
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone


class Channel:
    """The answer to one request. `start` is put off until something is written, as in Go."""

    def __init__(self, request: Request, scope: Scope, send: Send) -> None:
        self.started = False
        self._send = send
        self._transport: asyncio.Transport = scope["extensions"][TRANSPORT]
        self._takes_gzip = "gzip" in (request.header("accept-encoding") or "")
        self._plain = True
        self._controls = NONE
        self._content_type = NDJSON
        self._extra: Headers = ()
        self._crlf = False
        self._deflate: zlib._Compress | None = None
        self._held: list[bytes] = []
        self._sizes = itertools.cycle(_ODD)

    def shape(self, controls: Controls, content_type: str, extra: Headers = ()) -> None:
        """Say how the lines that follow are to be written, and under which headers."""
        self._controls = controls
        self._content_type = content_type
        self._extra = extra
        self._crlf = controls.crlf and content_type == EVENT_STREAM
        compresses = controls.gzip_always or (controls.gzip and self._takes_gzip)
        self._deflate = zlib.compressobj(wbits=31) if compresses else None
        self._plain = not (self._crlf or self._deflate or controls.split or controls.merge)

    async def _start(self, status: int, content_type: str, extra: Headers = ()) -> None:
        headers = [(b"content-type", content_type.encode())]
        headers += [(name.encode(), value.encode()) for name, value in extra]
        if self._deflate:
            headers += [(b"content-encoding", b"gzip"), (b"vary", b"Accept-Encoding")]
        claims = {b"br": self._controls.claim_br, b"gzip": self._controls.claim_gzip}
        headers += [(b"content-encoding", name) for name, claimed in claims.items() if claimed]
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def line(self, data: bytes) -> None:
        """Stream one line or event under status 200."""
        if not self.started:
            await self._start(200, self._content_type, self._extra)
        if self._plain:
            await self._write(data)
            return
        self._held.append(data.replace(b"\n", b"\r\n") if self._crlf else data)
        if not self._controls.merge or len(self._held) >= _MERGED:
            await self.flush()

    async def flush(self) -> None:
        """Write what was held back."""
        data = b"".join(self._held)
        self._held.clear()
        if self._deflate and data:
            data = self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        if self._controls.split:
            start = 0
            while start < len(data):
                end = start + next(self._sizes)
                await self._write(data[start:end])
                await asyncio.sleep(0)  # a turn of the loop: uvloop joins the writes of one turn
                start = end
        elif data:
            await self._write(data)

    async def finish(self) -> None:
        """End a streamed body."""
        await self.flush()
        last = self._deflate.flush() if self._deflate else b""
        await self._send({"type": "http.response.body", "body": last})

    async def whole(self, status: int, body: bytes, content_type: str = JSON_UTF8, extra: Headers = ()) -> None:
        """Answer in one piece."""
        if self._deflate:
            body = self._deflate.compress(body) + self._deflate.flush()
        if len(body) <= _GO_BUFFER and status != 204:
            extra = (*extra, ("content-length", str(len(body))))
        await self._start(status, content_type, extra)
        await self._send({"type": "http.response.body", "body": body})

    async def die(self) -> None:
        """Close the connection in the middle of whatever it carries, once what was written has left."""
        await self.flush()
        transport = self._transport
        while transport.get_write_buffer_size() and not transport.is_closing():  # noqa: ASYNC110  # no event tells this
            await asyncio.sleep(0.001)
        transport.abort()
