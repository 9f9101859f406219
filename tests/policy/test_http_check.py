"""The server of checks: one request at a time, bounded, ended by anything odd, and without a loss at its stop."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop

from policy.edge.http_check import MAX_HEADER_BYTES, MAX_HEADERS, HttpChecks, Respond, checks
from policy.edge.http_codec import CLIENT, STARTED
from policy.edge.http_server import bind
from policy.rules.decision import Deny, Reason, Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
MARKS = f"{STARTED}: 1790000000123456\r\n{CLIENT}: 192.0.2.7\r\n".encode()
PLAIN = b"GET /v1/models HTTP/1.1\r\nhost: policy\r\n" + MARKS + b"\r\n"


@contextlib.asynccontextmanager
async def serving(respond: Respond) -> AsyncIterator[tuple[HttpChecks, Callable[[], Awaitable[Streams]]]]:
    with tempfile.TemporaryDirectory(prefix="checks") as name:
        path = str(Path(name) / "edge.sock")
        server = await HttpChecks(respond, 1000).start(bind(f"unix:{path}"))
        try:
            yield server, lambda: asyncio.open_unix_connection(path)
        finally:
            await server.stop(0)


async def echo(method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
    text = f"{method} {target} {headers.get('x-a', '')} ".encode() + body
    return b"HTTP/1.1 200 -\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text)


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    return head, await reader.readexactly(length)


def run(scenario: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario

    uvloop.run(bounded())


def test_requests_follow_each_other_on_one_connection() -> None:
    async def scenario() -> None:
        async with serving(echo) as (_, connect):
            reader, writer = await connect()
            for piece in (1000, 7):
                sent = b"POST /a?b=1 HTTP/1.1\r\nX-A: 1\r\nx-a: \xc3\xa9\xff\r\ncontent-length: 3\r\n\r\nabc"
                for start in range(0, len(sent), piece):
                    writer.write(sent[start : start + piece])
                    await writer.drain()
                    await asyncio.sleep(0)
                assert (await answer(reader))[1] == "POST /a?b=1 1,é� abc".encode()
            writer.close()

    run(scenario())


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1001\r\n\r\n" + b"x" * 1001,
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + b"3e9\r\n" + b"x" * 1001,
        b"GET / HTTP/1.1\r\nx: " + b"a" * MAX_HEADER_BYTES + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"a" * (MAX_HEADER_BYTES + 20_000),  # without an end
        b"GET /" + b"a" * MAX_HEADER_BYTES + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: 1\r\n" * (MAX_HEADERS + 1) + b"\r\n",
        b"GET / HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\xff: 1\r\n\r\n",
    ],
)  # fmt: skip
def test_whatever_is_odd_ends_the_connection_without_a_word(sent: bytes) -> None:
    async def scenario() -> None:
        async with serving(echo) as (server, connect):
            reader, writer = await connect()
            writer.write(sent)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            reader, writer = await connect()  # and others are served
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            assert (await answer(reader))[1] == b"GET /  "
            assert len(server.connections) == 1
            writer.close()

    run(scenario())


def test_a_connection_that_ends_cancels_its_check() -> None:
    async def scenario() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def wait(*_: object) -> bytes:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return b""

        async with serving(wait) as (_, connect):
            _, writer = await connect()
            writer.write(PLAIN)
            await begun.wait()
            writer.close()
            await ended.wait()

    run(scenario())


def test_a_stop_finishes_what_is_under_way_and_nothing_else() -> None:
    async def scenario() -> None:
        begun, go = asyncio.Event(), asyncio.Event()

        async def slow(method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
            begun.set()
            await go.wait()
            return await echo(method, target, headers, body)

        async with serving(slow) as (server, connect):
            idle, unused = await connect()
            reader, writer = await connect()
            writer.write(PLAIN)
            await begun.wait()
            stopping = asyncio.ensure_future(server.stop(20))
            assert await idle.read() == b""
            with pytest.raises(OSError):  # refused, or the socket's file is gone
                await connect()
            go.set()
            head, body = await answer(reader)
            assert b"\r\nconnection: close\r\n" in head
            assert body == b"GET /v1/models  "
            assert await reader.read() == b""
            await stopping
            unused.close()
            writer.close()

    run(scenario())


def test_grace_ends() -> None:
    async def scenario() -> None:
        begun = asyncio.Event()

        async def never(*_: object) -> bytes:
            begun.set()
            await asyncio.Event().wait()
            return b""

        async with serving(never) as (server, connect):
            reader, writer = await connect()
            writer.write(PLAIN)
            await begun.wait()
            await server.stop(0.01)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()

    run(scenario())


class Failing:
    """A judge with a fault."""

    async def check(self, request: Request) -> Deny:
        raise RuntimeError("on purpose")


class Noted:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def decided(self, endpoint: str, reason: str, seconds: float) -> None:
        self.told.append((endpoint, reason))

    def signalled(self, signal: str) -> None:
        self.told.append(("signal", signal))


def test_a_fault_is_a_refusal_and_a_check_without_marks_is_no_check() -> None:
    async def scenario() -> None:
        noted = Noted()
        async with serving(checks(Failing(), noted)) as (_, connect):
            reader, writer = await connect()
            writer.write(PLAIN)
            head, body = await answer(reader)
            assert head.startswith(b"HTTP/1.1 493 ")
            assert b"\r\nreason: fault\r\n" in head
            assert b"temporarily unavailable" in body
            assert noted.told == [("", Reason.FAULT.value)]
            writer.write(b"GET /v1/models HTTP/1.1\r\nhost: policy\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()

    run(scenario())
