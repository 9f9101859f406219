"""The load generator: keep-alive connections on bare asyncio protocols, each with one request under way at a time."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING

import uvloop

if TYPE_CHECKING:
    from collections.abc import Iterator

_LENGTH = re.compile(rb"content-length: (\d+)", re.I)


@dataclass
class Result:
    """What a run of load saw. Times are seconds."""

    seconds: float = 0.0
    answers: int = 0
    errors: int = 0
    latencies: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    between_tokens: list[float] = field(default_factory=list)
    tokens: int = 0


def request(method: str, path: str, body: bytes, key: str) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


def chat(text: str = "Say hello in one short sentence", *, stream: bool = False) -> bytes:
    """A short chat that names its cap, as clients do that know what they want."""
    body = {
        "model": "llama3.1:8b",
        "messages": [{"role": "user", "content": text}],
        "stream": stream,
        "options": {"num_predict": 4096 if stream else 64},
    }
    return json.dumps(body, separators=(",", ":")).encode()


class _Connection(asyncio.Protocol):
    def __init__(
        self, result: Result, messages: Iterator[bytes], until: float, most: int, done: asyncio.Future[None]
    ) -> None:
        self._result, self._messages, self._until, self._most, self._done = result, messages, until, most, done
        self._buffer = b""
        self._head = -1
        self._chunked = False
        self._last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream's transport
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._result.errors += 1
            self._done.set_result(None)

    def _ask(self) -> None:
        message = next(self._messages)
        self._begun = self._last = time.perf_counter()
        self._buffer, self._head, self._pieces = b"", -1, 0
        self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._head < 0:
            self._head = self._buffer.find(b"\r\n\r\n")
            if self._head < 0:
                return
            head = self._buffer[: self._head]
            if not head.startswith(b"HTTP/1.1 200"):
                self._result.errors += 1
            length = _LENGTH.search(head)
            self._chunked = length is None
            self._whole = 0 if length is None else self._head + 4 + int(length[1])
            if self._chunked:
                data = self._buffer[self._head + 4 :]
        if self._chunked:
            self._stream(data)
        elif len(self._buffer) >= self._whole:
            self._finish()

    def _stream(self, data: bytes) -> None:
        now = time.perf_counter()
        found = data.count(b'"done":')
        if found:
            if self._pieces == 0:
                self._result.first_token.append(now - self._begun)
            else:
                self._result.between_tokens.append(now - self._last)
            self._pieces += found
            self._last = now
        if self._buffer.endswith(b"0\r\n\r\n"):
            self._result.tokens += self._pieces - 1
            self._finish()
        else:
            self._buffer = self._buffer[-8:]

    def _finish(self) -> None:
        now = time.perf_counter()
        self._result.latencies.append(now - self._begun)
        self._result.answers += 1
        self._most -= 1
        if now < self._until and self._most > 0:
            self._ask()
        elif not self._done.done():
            self._done.set_result(None)
            self._transport.close()


def run(
    url: str, message: bytes | Iterator[bytes], *, connections: int, seconds: float, most: int = 10**9,
    spread: float = 0.0,
) -> Result:  # fmt: skip  # options
    """Load `url` (http://host:port) with `message`, or the next of endless messages, over so many connections for so
    long, or `most` times each. The connections begin over `spread` seconds, evenly."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    messages = repeat(message) if isinstance(message, bytes) else message

    async def load() -> Result:
        loop = asyncio.get_running_loop()
        result = Result()
        begun = time.perf_counter()
        waiting = [loop.create_future() for _ in range(connections)]
        for done in waiting:
            await asyncio.sleep(spread / connections)
            await loop.create_connection(
                lambda done=done: _Connection(result, messages, begun + seconds, most, done),  # type: ignore[misc]  # a lambda's default
                host,
                int(port),
            )
        await asyncio.gather(*waiting)
        result.seconds = time.perf_counter() - begun
        return result

    return uvloop.run(load())


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie; nan of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
