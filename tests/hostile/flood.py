"""One flood from an address of its own, until it is killed: `python -m tests.hostile.flood KIND URL SHARE`.

A process of its own, so that it takes nothing of the interpreter that the well-behaved client is measured in. The rate
is bounded for the same reason: on one machine the flood's own cost would else be what is measured. Now and then it
prints how many connections or requests it has made.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from policy.rules import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator

ADDRESS = "127.0.0.2"  # the well-behaved client has 127.0.0.1
_HELD = 200  # connections that a slow flood holds at once
_KEPT = 2000  # connections that a flood of connections leaves open
_TASKS = 40  # of a flood that is paced: so many may wait for an answer
# Requests or connections a second, at most. A slow flood is bounded by what it holds.
_PER_SECOND = {"slow-headers": 0, "slow-bodies": 0, "headers": 150, "connections": 300, "wrong-keys": 100}


class Flood:
    """Connections to one front door, paced."""

    def __init__(self, url: str, per_second: float, held: int) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname, parts.port
        self.made = 0
        self.held = held
        self.tasks = 1
        self.paced = per_second > 0
        self._pause = 1 / per_second if per_second else 0.0

    async def pace(self) -> None:
        """Wait for the next turn."""
        await asyncio.sleep(self._pause * self.tasks)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port, local_addr=(ADDRESS, 0))

    async def slow(self, head: bytes, drip: bytes) -> None:
        """Open, begin a request, and never come to its end."""
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await self.open()
                try:
                    writer.write(head)
                    self.made += 1
                    while not reader.at_eof():
                        writer.write(drip)
                        await writer.drain()
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(reader.read(1000), 0.5)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(0.1)

    async def slow_headers(self) -> None:
        await self._many(self.slow(b"POST /api/chat HTTP/1.1\r\nhost: x\r\n", b"x-a: b\r\n") for _ in range(self.held))

    async def slow_bodies(self) -> None:
        head = b"POST /api/chat HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\ncontent-length: 200000\r\n\r\n{"
        await self._many(self.slow(head % _wrong_key().encode(), b" ") for _ in range(self.held))

    async def headers(self) -> None:
        """Requests with as many headers as are taken, and with more."""
        for count in _for_ever(99, 150):
            lines = b"".join(b"x-%d: %s\r\n" % (number, b"a" * 250) for number in range(count))
            await self.ask(b"GET /api/tags HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\n")

    async def connections(self) -> None:
        """Connections that are opened and left; every other one is closed again."""
        held = []
        for keep in _for_ever(True, False):
            with contextlib.suppress(OSError):
                _, writer = await self.open()
                self.made += 1
                if keep:
                    held.append(writer)
                else:
                    writer.transport.abort()
            if len(held) > _KEPT // self.tasks:
                held.pop(0).transport.abort()
            await self.pace()

    async def wrong_keys(self) -> None:
        """Well-formed keys that nobody has."""
        body = b'{"model":"llama3.1:8b","messages":[{"role":"user","content":"x"}]}'
        head = b"POST /api/chat HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\ncontent-length: %d\r\n\r\n%s"
        while True:
            await self.ask(head % (_wrong_key().encode(), len(body), body))

    async def ask(self, request: bytes) -> None:
        with contextlib.suppress(OSError):
            reader, writer = await self.open()
            try:
                writer.write(request)
                self.made += 1
                await asyncio.wait_for(reader.read(1000), 10)
            except TimeoutError:
                pass  # it waits in line: that is the gateway's right
            finally:
                writer.transport.abort()
        await self.pace()

    @staticmethod
    async def _many(works: Iterable[Coroutine[object, object, None]]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work)

    async def tell(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            print(self.made, flush=True)


def _for_ever(*values: int) -> Iterator[int]:
    while True:
        yield from values


def _wrong_key() -> str:
    return keys.mint(os.urandom).reveal()


KINDS: dict[str, Callable[[Flood], Coroutine[object, object, None]]] = {
    "slow-headers": Flood.slow_headers,
    "slow-bodies": Flood.slow_bodies,
    "headers": Flood.headers,
    "connections": Flood.connections,
    "wrong-keys": Flood.wrong_keys,
}


async def main(kind: str, url: str, share: float) -> None:
    """`share` of the rate, and of what is held."""
    flood = Flood(url, _PER_SECOND[kind] * share, round(_HELD * share))
    flood.tasks = max(1, round(_TASKS * share)) if flood.paced else 1
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(flood.tell())
        for _ in range(flood.tasks):
            tasks.create_task(KINDS[kind](flood))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
