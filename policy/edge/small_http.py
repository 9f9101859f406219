"""A small HTTP/1.1 server for calls between the gateway's own parts, where every microsecond is paid once a request.

httptools (the parser of Node.js) reads, an asyncio protocol answers; no routing, no middleware. One connection carries
one call after the other, which is how Envoy's HTTP/1.1 upstreams work; what is no plain call ends the connection. A
caller that goes away does not stop a call that has begun: what it asked for may be on its way into a store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import httptools

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

BACKLOG = 1024
MAX_HEADER_BYTES = 128 * 1024
_REASONS = {200: b"OK", 202: b"Accepted", 400: b"Bad Request", 404: b"Not Found", 500: b"Internal Server Error"}


@dataclass(slots=True)
class Call:
    """One request as it came: header names in lower case."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass(slots=True)
class SmallServer:
    """Serves `answer` (a call → the bytes of a whole response, see `response`) until closed. A body of more than
    `max_body` bytes ends its connection."""

    answer: Callable[[Call], Awaitable[bytes]]
    max_body: int
    _server: asyncio.Server | None = None
    _connections: set[_Connection] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self, bound: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Take calls from a bound socket."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), sock=bound, ssl=tls, backlog=BACKLOG
        )

    async def close(self, grace: float) -> None:
        """Take no new connection; end idle ones now and the others after their call, `grace` seconds at most."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.finish()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for connection in list(self._connections):
            connection.abort()


def response(status: int, body: bytes = b"", headers: bytes = b"") -> bytes:
    """The bytes of a response; `headers` are whole lines, each with its CRLF."""
    return b"HTTP/1.1 %d %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
        status, _REASONS.get(status, b"-"), headers, len(body), body,
    )  # fmt: skip


class _Connection(asyncio.Protocol):
    """One connection: parser callbacks above, answers below."""

    def __init__(self, server: SmallServer) -> None:
        self._of = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._busy = False
        self._closing = False
        self._fresh()

    def _fresh(self) -> None:
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._header_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._of._connections.add(self)  # one thing in two classes

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._of._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, _TooMuch):
            self.abort()  # it is no part of ours that speaks so

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))
        self._count(len(name) + len(value))

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise _TooMuch

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > self._of.max_body:
            raise _TooMuch

    def on_message_complete(self) -> None:
        if self._busy:
            raise _TooMuch  # pipelined: Envoy never does
        call = Call(self._parser.get_method(), self._target, self._headers, b"".join(self._body))
        self._fresh()
        self._busy = True
        task = asyncio.get_running_loop().create_task(self._answer(call))
        self._of._tasks.add(task)
        task.add_done_callback(self._of._tasks.discard)

    async def _answer(self, call: Call) -> None:
        reply = await self._of.answer(call)
        self._busy = False
        if self._transport is not None:
            self._transport.write(reply)
            if self._closing:
                self._transport.close()

    def finish(self) -> None:
        """No further call."""
        self._closing = True
        if not self._busy and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Nothing more, at once."""
        with contextlib.suppress(AttributeError):
            self._transport.abort()  # type: ignore[union-attr]  # gone already: nothing to do


class _TooMuch(Exception):  # a reason to hang up, not an error
    pass
