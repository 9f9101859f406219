"""The shared connection: real Valkey, calls at once, calls given up, a server that dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from typing import TYPE_CHECKING

import hiredis
import pytest

from gateway.embedded import _valkey_program
from policy.stores.multiplex import Address, Multiplexed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@contextlib.contextmanager
def valkey(directory: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server on a Unix socket, its URL and its process."""
    path = directory / "s"
    words = ("--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(directory), *options)
    process = subprocess.Popen([str(_valkey_program()), *words], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if b"Ready to accept connections" in line or b"ready to accept connections" in line:
                break
        yield f"unix://{path}", process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.asynccontextmanager
async def connected(url: str, patience: float = 1.0) -> AsyncIterator[Multiplexed]:
    shared = Multiplexed(url, patience=patience)
    try:
        yield shared
    finally:
        await shared.close()


def test_each_call_gets_its_own_answer(tmp_path: Path) -> None:
    async def run(url: str) -> None:
        async with connected(url) as shared:
            answers = await asyncio.gather(*(shared.execute("ECHO", str(number)) for number in range(2000)))
            assert answers == [str(number).encode() for number in range(2000)]
            assert await shared.execute("INCRBY", "n", 7) == 7
            assert await shared.execute("SET", b"\x00\xff", b"\r\n$5") == b"OK"
            assert await shared.execute("GET", b"\x00\xff") == b"\r\n$5"

    with valkey(tmp_path) as (url, _):
        asyncio.run(run(url))


def test_a_call_given_up_keeps_its_place(tmp_path: Path) -> None:
    async def run(url: str) -> None:
        async with connected(url) as shared:
            await shared.execute("PING")
            given_up = asyncio.ensure_future(shared.execute("ECHO", "nobody"))
            kept = asyncio.ensure_future(shared.execute("ECHO", "somebody"))
            await asyncio.sleep(0)
            given_up.cancel()
            assert await kept == b"somebody"
            assert await shared.execute("ECHO", "next") == b"next"

    with valkey(tmp_path) as (url, _):
        asyncio.run(run(url))


def test_an_error_of_the_server_is_an_answer(tmp_path: Path) -> None:
    async def run(url: str) -> None:
        async with connected(url) as shared:
            answer = await shared.execute("EVALSHA", "0" * 40, 0)
            assert isinstance(answer, hiredis.ReplyError)
            assert str(answer).startswith("NOSCRIPT")
            assert await shared.execute("ECHO", "x") == b"x"

    with valkey(tmp_path) as (url, _):
        asyncio.run(run(url))


def test_a_server_that_dies_and_comes_back(tmp_path: Path) -> None:
    async def run() -> None:
        with valkey(tmp_path) as (url, process):
            async with connected(url) as shared:
                assert await shared.execute("PING") == b"PONG"
                process.send_signal(signal.SIGSTOP)
                waiting = [asyncio.ensure_future(shared.execute("PING")) for _ in range(3)]
                await asyncio.sleep(0.05)
                process.kill()
                for call in waiting:
                    with pytest.raises(ConnectionError):
                        await call
                process.wait()
                with pytest.raises(OSError):  # refused, or no such file
                    await shared.execute("PING")
                with valkey(tmp_path):
                    assert await shared.execute("PING") == b"PONG"

    asyncio.run(run())


def test_a_server_that_hangs_is_given_up(tmp_path: Path) -> None:
    async def run() -> None:
        with valkey(tmp_path) as (url, process):
            async with connected(url, patience=0.3) as shared:
                assert await shared.execute("PING") == b"PONG"
                process.send_signal(signal.SIGSTOP)
                with pytest.raises(TimeoutError):
                    await shared.execute("PING")
                process.send_signal(signal.SIGCONT)
                assert await shared.execute("PING") == b"PONG"

    asyncio.run(run())


def test_the_password_is_given_and_never_shown(tmp_path: Path) -> None:
    async def run(url: str) -> None:
        async with connected(url.replace("unix://", "unix://:s%20cret@") + "?db=3") as shared:
            assert await shared.execute("SET", "a", "1") == b"OK"
            assert b"db=3" in await shared.execute("CLIENT", "INFO")
        async with connected(url.replace("unix://", "unix://:wrong@")) as shared:
            with pytest.raises(ConnectionError, match="AUTH was refused"):
                await shared.execute("PING")

    with valkey(tmp_path, "--requirepass", "s cret") as (url, _):
        asyncio.run(run(url))
    assert "secret" not in repr(Address.parse("rediss://user:secret@host:1/2"))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://", Address()),
        ("redis://h:1/2", Address(host="h", port=1, greeting=(("SELECT", "2"),))),
        ("rediss://u:p@h", Address(host="h", tls=True, greeting=(("AUTH", "u", "p"),))),
        ("redis+unix:///a%20b", Address(path="/a b")),
    ],
)
def test_urls(url: str, address: Address) -> None:
    assert Address.parse(url) == address


@pytest.mark.parametrize("url", ["http://h", "h:6379", "redis://h/x"])
def test_what_names_no_server(url: str) -> None:
    with pytest.raises(ValueError):
        Address.parse(url)
