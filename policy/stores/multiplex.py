"""One connection to Redis or Valkey that any number of calls share: what is asked meanwhile goes out in one write.

A pool gives every call under way a connection of its own; measured at 32 calls at once, that costs 58 µs of CPU a call,
and this 4. Redis answers in order, so an answer belongs to the oldest call that waits. A call that its caller gave up
(Envoy cancels checks) keeps its place in that order, and its answer is dropped.

A connection that is lost, or that has let the oldest call wait too long, fails all calls that wait, with
ConnectionError or TimeoutError; the next call makes a new one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

if TYPE_CHECKING:
    from collections.abc import Sequence

WATCH_SECONDS = 0.25  # how often the oldest call's age is looked at


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is and how to be let in: what a redis:// URL says. It never prints its password."""

    path: str = ""  # a Unix socket; "" for TCP
    host: str = "127.0.0.1"
    port: int = 6379
    tls: bool = False
    greeting: tuple[tuple[str, ...], ...] = ()  # AUTH and SELECT, where the URL asks for them

    @classmethod
    def parse(cls, url: str) -> Address:
        """`redis://`, `rediss://`, `unix://`, `redis+unix://`; ValueError on another form."""
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss", "unix", "redis+unix"):
            raise ValueError(f"{parts.scheme}:// names no Redis: write redis://, rediss:// or unix://")
        unix = parts.scheme.endswith("unix")
        options = parse_qs(parts.query)
        database = (options.get("db") or ["" if unix else parts.path.strip("/")])[0] or "0"
        greeting: list[tuple[str, ...]] = []
        if parts.password:
            user = (unquote(parts.username),) if parts.username else ()
            greeting.append(("AUTH", *user, unquote(parts.password)))
        if database != "0":
            greeting.append(("SELECT", str(int(database))))
        return cls(
            path=unquote(parts.path) if unix else "",
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 6379,
            tls=parts.scheme == "rediss",
            greeting=tuple(greeting),
        )

    def __repr__(self) -> str:
        return f"Address({self.path or f'{self.host}:{self.port}'})"


class Multiplexed:
    """Calls over one connection, made when first needed and made anew when lost."""

    def __init__(self, url: str, *, patience: float = 1.0) -> None:
        self._address = Address.parse(url)
        self._patience = patience
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None

    async def execute(self, *command: str | bytes | int) -> Any:
        """One command's answer. An error of the server is returned, not raised: a `hiredis.ReplyError`.

        ConnectionError, OSError or TimeoutError when there is no answer; whether the server acted is not known then.
        """
        connection = self._connection
        if connection is None or connection.lost:
            connection = await self._connect()
        return await connection.ask(command)

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.fail(ConnectionError("closed"))

    async def _connect(self) -> _Connection:
        if self._connecting is None:
            # Whoever needs the connection awaits this task: it is not lost. A cancellation is its caller's alone.
            self._connecting = asyncio.ensure_future(self._open())
            self._connecting.add_done_callback(self._connected)
        return await asyncio.shield(self._connecting)

    def _connected(self, task: asyncio.Task[_Connection]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._connection = task.result()

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        address = self._address
        async with asyncio.timeout(self._patience):
            if address.path:
                _, connection = await loop.create_unix_connection(lambda: _Connection(self._patience), address.path)
            else:
                tls = ssl.create_default_context() if address.tls else None
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._patience), address.host, address.port, ssl=tls
                )
            for command in address.greeting:
                answer = await connection.ask(command)
                if isinstance(answer, hiredis.ReplyError):
                    connection.fail(ConnectionError("refused by the server"))
                    raise ConnectionError(f"{command[0]} was refused")
        return connection


class _Connection(asyncio.Protocol):
    def __init__(self, patience: float) -> None:
        self.lost = False
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._out: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None
        self._watch: asyncio.TimerHandle | None = None

    def ask(self, command: Sequence[str | bytes | int]) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self.lost:
            answer.set_exception(ConnectionError("the connection was lost"))
            return answer
        self._waiting.append((answer, self._loop.time()))
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(cast("tuple[str]", tuple(command))))
        if self._watch is None:
            self._watch = self._loop.call_later(WATCH_SECONDS, self._look)
        return answer

    def fail(self, error: Exception) -> None:
        """Give up: every call that waits fails with `error`."""
        self.lost = True
        if self._transport is not None:
            self._transport.abort()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._waiting:
            answer, _ = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(error)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are, but do not inherit from it

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                answer, _ = self._waiting.popleft()
                if not answer.done():
                    answer.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self.fail(ConnectionError("the server speaks no Redis protocol"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(ConnectionError("the server closed the connection"))

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and not self.lost:
            self._transport.write(b"".join(out))

    def _look(self) -> None:
        self._watch = None
        if not self._waiting:
            return
        if self._loop.time() - self._waiting[0][1] > self._patience:
            self.fail(TimeoutError("the server did not answer"))
            return
        self._watch = self._loop.call_later(WATCH_SECONDS, self._look)
