"""The small HTTP server, through real sockets: what it takes, what ends a connection, and how it stops."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from policy.edge.small_http import MAX_HEADER_BYTES, Call, SmallServer, response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Answer = Callable[[Call], Awaitable[bytes]]
    Scenario = Callable[["Peer"], Awaitable[None]]

MAX_BODY = 1000


class Peer:
    """A server that answers by `answer`, and what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.go = asyncio.Event()  # answers wait for it
        self.go.set()
        self.begun = asyncio.Event()
        self.done = 0
        self.server = SmallServer(self.answer, MAX_BODY)

    async def answer(self, call: Call) -> bytes:
        self.calls.append(call)
        self.begun.set()
        await self.go.wait()
        self.done += 1
        if call.target == b"/fault":
            raise ZeroDivisionError
        return response(200, call.body[::-1], b"x-said: so\r\n")

    async def start(self) -> None:
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        self.address = bound.getsockname()
        await self.server.start(bound)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address)


def run(scenario: Scenario) -> Peer:
    async def whole() -> Peer:
        peer = Peer()
        await peer.start()
        try:
            async with asyncio.timeout(30):
                await scenario(peer)
        finally:
            await peer.server.close(0)
        return peer

    return asyncio.run(whole())


def post(body: bytes = b"abc", target: bytes = b"/settle") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (target, len(body), body)


ANSWER = b"HTTP/1.1 200 OK\r\nx-said: so\r\ncontent-length: 3\r\n\r\ncba"


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still comes before the connection ends."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""


def test_one_call_after_the_other_on_one_connection() -> None:
    async def scenario(peer: Peer) -> None:
        reader, writer = await peer.connect()
        for _ in range(3):
            writer.write(post())
            assert await reader.readexactly(len(ANSWER)) == ANSWER
        writer.close()

    calls = run(scenario).calls
    assert len(calls) == 3
    assert calls[2] == Call(b"POST", b"/settle", [(b"host", b"h"), (b"content-length", b"3")], b"abc")


def test_a_call_in_single_bytes() -> None:
    async def scenario(peer: Peer) -> None:
        reader, writer = await peer.connect()
        for byte in post():
            writer.write(bytes([byte]))
            await writer.drain()
        assert await reader.readexactly(len(ANSWER)) == ANSWER
        writer.close()

    (call,) = run(scenario).calls
    assert (call.target, call.body) == (b"/settle", b"abc")


def test_a_chunked_body() -> None:
    async def scenario(peer: Peer) -> None:
        reader, writer = await peer.connect()
        writer.write(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n")
        assert await reader.readexactly(len(ANSWER)) == ANSWER
        writer.close()

    (call,) = run(scenario).calls
    assert call.body == b"abc"


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /" + b"x" * MAX_HEADER_BYTES + b"x HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: bbbbbbbbbbbbbbbb\r\n" * (MAX_HEADER_BYTES // 16) + b"\r\n",
        post(b"x" * (MAX_BODY + 1)),
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"64\r\n" + b"x" * 100 + b"\r\n385\r\n" + b"x" * 901,
    ],
    ids=[
        "tls", "http2", "header", "negative", "two lengths", "chunk", "upgrade", "long target", "many headers",
        "large", "large in chunks",
    ],
)  # fmt: skip
def test_what_is_no_plain_call_ends_the_connection_and_no_other(sent: bytes) -> None:
    async def scenario(peer: Peer) -> None:
        other_reader, other_writer = await peer.connect()
        reader, writer = await peer.connect()
        writer.write(sent)
        assert b"200" not in await ended(reader)
        writer.close()
        other_writer.write(post())
        assert await other_reader.readexactly(len(ANSWER)) == ANSWER
        other_writer.close()

    assert [call.target for call in run(scenario).calls if call.body] == [b"/settle"]


def test_the_largest_body_is_taken() -> None:
    async def scenario(peer: Peer) -> None:
        reader, writer = await peer.connect()
        writer.write(post(b"x" * MAX_BODY))
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()

    run(scenario)


def test_a_second_call_before_the_first_is_answered_ends_the_connection_but_not_the_first() -> None:
    async def scenario(peer: Peer) -> None:
        peer.go.clear()
        reader, writer = await peer.connect()
        writer.write(post() + post(b"second"))
        await peer.begun.wait()
        assert await ended(reader) == b""
        peer.go.set()
        await peer.server.close(10)
        writer.close()

    (call,) = run(scenario).calls
    assert call.body == b"abc"


def test_a_caller_that_leaves_does_not_stop_its_call() -> None:
    async def scenario(peer: Peer) -> None:
        peer.go.clear()
        _, writer = await peer.connect()
        writer.write(post())
        await peer.begun.wait()
        writer.transport.abort()
        while peer.server._connections:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.001)
        peer.go.set()
        await peer.server.close(10)

    assert run(scenario).done == 1


def test_a_fault_ends_the_connection_at_once_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(peer: Peer) -> None:
        reader, writer = await peer.connect()
        writer.write(post(target=b"/fault"))
        assert await ended(reader) == b""
        writer.close()
        reader, writer = await peer.connect()
        writer.write(post())
        assert await reader.readexactly(len(ANSWER)) == ANSWER
        writer.close()

    run(scenario)
    assert [record.message for record in caplog.records] == ["call failed"]


def test_it_stops_when_what_it_has_begun_is_answered() -> None:
    async def scenario(peer: Peer) -> None:
        peer.go.clear()
        idle, idle_writer = await peer.connect()
        reader, writer = await peer.connect()
        writer.write(post())
        await peer.begun.wait()
        closing = asyncio.ensure_future(peer.server.close(20))
        assert await ended(idle) == b"", "an idle connection ends at once"
        assert not closing.done()
        with pytest.raises(ConnectionError):
            await peer.connect()
        peer.go.set()
        assert await ended(reader) == ANSWER
        await closing
        writer.close()
        idle_writer.close()

    assert run(scenario).done == 1


def test_what_does_not_end_in_its_grace_is_cut() -> None:
    async def scenario(peer: Peer) -> None:
        peer.go.clear()
        reader, writer = await peer.connect()
        writer.write(post())
        await peer.begun.wait()
        await peer.server.close(0.01)
        assert await ended(reader) == b""
        writer.close()
        peer.go.set()

    run(scenario)
