"""Serves the checks of Envoy's ext_authz over HTTP/1.1: a gRPC call costs ten times as much.

One caller is expected, Envoy, on connections that it keeps; it sends a request and waits for the reply. Whatever is not
exactly that (a malformed message, one too large, a second one before the first is answered) ends the connection without
a word: Envoy asks another worker, or refuses the client. A connection that ends cancels the check under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, cast

import httptools

from policy.edge import listening
from policy.edge.http_codec import Unmarked, reply_to, request_from
from policy.edge.verdict import decide, place

if TYPE_CHECKING:
    from typing import Self

    from policy.edge.tracing import Tracing
    from policy.edge.verdict import Judge, Observer
    from policy.rules.settings import TlsFiles

Respond = Callable[[str, str, dict[str, str], bytes], Awaitable[bytes]]  # method, target, headers, body: the reply

log = logging.getLogger(__name__)

BACKLOG = 1024
SPAN = "envoy.service.auth.v3.Authorization/Check"  # one name for a check, whichever way it came
MAX_HEADER_BYTES = 64 * 1024  # Envoy takes 32 KiB of them from a client and adds some
FRAMING_BYTES = 8192  # the request line's and the headers' own signs; Envoy sends no chunks
FLUSH_SECONDS = 1.0
MAX_HEADERS = 200  # 100 of a client's


def checks(judge: Judge, observer: Observer, tracing: Tracing | None = None) -> Respond:
    """Answers checks by `judge`, each in a span of `tracing` where Envoy keeps its trace."""

    async def respond(method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
        request = request_from(method, target, headers, body)
        return reply_to(await decide(judge, observer, request), request)

    async def traced(method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
        assert tracing is not None  # noqa: S101  # else it is not used
        with tracing.call(SPAN, headers.get("traceparent", "")):
            return await respond(method, target, headers, body)

    return traced if tracing is not None else respond


class HttpChecks:
    """The listener and its connections. `cancels`: what a caller asked for ends when it goes away; a check is of no use
    then, a settlement is."""

    def __init__(self, respond: Respond, max_body_bytes: int, *, cancels: bool = True) -> None:
        self.respond = respond
        self.max_body_bytes = max_body_bytes
        self.cancels = cancels
        self.left: set[asyncio.Task[None]] = set()  # what goes on without its caller
        self.draining = False
        self.connections: set[_Connection] = set()
        self.gone = asyncio.Event()  # once draining: no connection is left
        self._server: asyncio.Server | None = None

    async def start(self, bound: socket.socket, tls: TlsFiles | None = None) -> Self:
        """Serve on a socket of `http_server.bind`. ValueError where TLS files cannot be used."""
        context = listening.context(tls) if tls is not None and bound.family != socket.AF_UNIX else None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self, loop), sock=bound, backlog=BACKLOG, ssl=context
        )
        return self

    async def stop(self, grace: float) -> None:
        """No new connection, none kept; checks under way are answered, for `grace` seconds."""
        if self._server is None:
            return
        self.draining = True
        self._server.close()
        for connection in tuple(self.connections):
            connection.drain()
        self.look()
        under_way = {connection.task for connection in self.connections if connection.task is not None} | self.left
        if under_way:
            await asyncio.wait(under_way, timeout=grace)
        # What is answered is still being written: its connection goes by itself, as soon as Envoy took it.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.gone.wait(), FLUSH_SECONDS)
        for connection in tuple(self.connections):
            connection.abort()

    def look(self) -> None:
        """Notice that the last connection is gone."""
        if self.draining and not self.connections:
            self.gone.set()


class _Connection(asyncio.Protocol):
    """One connection of Envoy's; `task` is the check under way."""

    def __init__(self, owner: HttpChecks, loop: asyncio.AbstractEventLoop) -> None:
        self.task: asyncio.Task[None] | None = None
        self._owner = owner
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._begun = False
        self._fed = 0  # bytes of the request in hand

    # The transport's events.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has its methods and not its type
        self._owner.connections.add(self)
        if self._owner.draining:
            self._transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        self._owner.connections.discard(self)
        self._owner.look()
        self._transport = None
        if self.task is not None and self._owner.cancels:
            self.task.cancel()
        elif self.task is not None:
            self._owner.left.add(self.task)
            self.task.add_done_callback(self._owner.left.discard)

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        self._fed += len(data)
        # One at a time; and a line without an end is held by the parser, which tells nobody of it.
        if self.task is not None or self._fed > MAX_HEADER_BYTES + self._owner.max_body_bytes + FRAMING_BYTES:
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, UnicodeDecodeError) as error:
            log.warning("a check that is no HTTP request", extra={"fault": type(error).__name__})
            self.abort()

    # The parser's.

    def on_message_begin(self) -> None:
        if self._begun:
            raise httptools.HttpParserError("a second request before the first was answered")
        self._begun = True
        self._target = b""
        self._headers: dict[str, str] = {}
        self._count = self._size = 0
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count_bytes(len(url), MAX_HEADER_BYTES)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count += 1
        if self._count > MAX_HEADERS:
            raise httptools.HttpParserError("too many headers")
        self._count_bytes(len(name) + len(value), MAX_HEADER_BYTES)
        key, text = str(name, "ascii").lower(), str(value, "utf-8", "replace")
        known = self._headers.get(key)
        self._headers[key] = text if known is None else f"{known},{text}"

    def on_headers_complete(self) -> None:
        self._size = 0

    def on_body(self, body: bytes) -> None:
        self._count_bytes(len(body), self._owner.max_body_bytes)
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._fed = 0
        method = str(self._parser.get_method(), "ascii")
        target, body = str(self._target, "utf-8", "replace"), b"".join(self._body)
        last = not self._parser.should_keep_alive()
        # Kept by the connection until it is done, which logs what it raises.
        self.task = self._loop.create_task(self._answer(method, target, self._headers, body, last))

    def _count_bytes(self, more: int, limit: int) -> None:
        self._size += more
        if self._size > limit:
            raise httptools.HttpParserError("too large")

    # The answer.

    async def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes, last: bool) -> None:
        try:
            answer = await self._owner.respond(method, target, headers, body)
        except Unmarked as error:
            log.error("a check cannot be judged", extra={"fault": str(error), "hint": "see envoy.yaml's ext_authz"})
            self.abort()
            return
        except Exception as fault:  # the last net: without an answer Envoy refuses the request
            log.error("check failed", extra=place(fault))
            self.abort()
            return
        self.task, self._begun = None, False
        if self._transport is not None:
            if last or self._owner.draining:
                self._transport.write(answer.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
                self._transport.close()
            else:
                self._transport.write(answer)

    def drain(self) -> None:
        """Close it now, or with the answer under way."""
        if self.task is None and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End it without a word."""
        if self._transport is not None:
            self._transport.abort()
