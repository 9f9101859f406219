"""Malformed requests through the front door, by the thousand.

Each goes over a connection of its own. It is answered, or its connection is closed; no answer and no line of Envoy's
log says 5xx; nothing of a body, a header or a query is in any log, in the audit rows or in the counter store; the
upstream sees no request that was not admitted; and the parts hold no more memory after the last thousands than after
the first. The name of a model that a caller asks for is recorded, and so is a path: no canary is put there on purpose.
"""

from __future__ import annotations

import asyncio
import collections
import json
import random
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.harness import eventually, text
from tests.hostile import http1, http2
from tests.hostile.processes import Held, growth, held

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Gateway

CANARY = re.compile(r"kanarie[0-9a-f]{8}")
GROWTH_MAX = 32.0  # MiB a part, after warm-up: allocators keep what a burst took
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
_PATIENCE = 0.4  # seconds that an answer has before the client hangs up, where the server may wait for more
_CLOSED_WITHIN = 30.0
_READY = "/readyz"  # it says 503 while the gateway starts, to whoever started it
_TOO_EARLY = "missing_host_header"  # refused before Envoy replaces X-Request-ID: its own log has the client's
_NAMED = ("model",)  # fields that hold a word of the client's: which model it asked for


@dataclass
class Run:
    """What was sent and what came back."""

    sent: collections.Counter[str] = field(default_factory=collections.Counter)
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    before: dict[str, Held] = field(default_factory=dict)
    after: dict[str, Held] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        return {
            "requests": sum(self.sent.values()),
            "classes": len(self.sent),
            "answers": dict(sorted(self.statuses.items())),
            "seconds": round(self.seconds, 1),
            "grown_mib": growth(self.before, self.after),
            "faults": len(self.faults),
        }


def run(gateway: Gateway, count: int, seed: int, clients: int = 24) -> Run:
    """Send `count` of them; memory is compared between the first quarter's end and the last's."""
    found, key = Run(), gateway.client().key
    began = time.monotonic()
    warm = count // 4
    asyncio.run(_send(gateway, key, range(warm), seed, clients, found))
    found.before = held(gateway)
    asyncio.run(_send(gateway, key, range(warm, count), seed, clients, found))
    found.after = held(gateway)
    found.seconds = time.monotonic() - began
    found.faults += _judged(gateway, found)
    return found


async def _send(gateway: Gateway, key: str, numbers: range, seed: int, clients: int, found: Run) -> None:
    rest = iter(numbers)

    async def client() -> None:
        for number in rest:
            maker = http1.Maker(random.Random(seed * 1_000_003 + number), key)
            wire = http2.make(maker, number // 4) if number % 4 == 3 else maker.make(number - number // 4)
            found.sent[wire.kind] += 1
            try:
                found.statuses[await _exchange(gateway.url, wire)] += 1
            except TimeoutError:
                found.faults.append(f"left open: {wire.kind} {wire.data[:300]!r}")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(client())


async def _exchange(url: str, wire: http1.Wire) -> str:
    """Write it all, read until there is an answer or the end; what came, in a word."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)
    answer = b""
    try:
        try:
            writer.write(wire.data)
            await writer.drain()
            answer = await _answer(reader, wire)
        except ConnectionError:
            return "closed"  # before all of it was written
    finally:
        writer.transport.abort()
    if wire.kind.startswith("h2"):
        return "h2" if answer else "closed"
    statuses = _STATUS.findall(answer)
    return statuses[0].decode() if statuses else "closed"


async def _answer(reader: asyncio.StreamReader, wire: http1.Wire) -> bytes:
    """The first bytes of an answer. Where the server waits for more of the request, the client's end of it ends it."""
    try:
        async with asyncio.timeout(_PATIENCE if wire.owes else _CLOSED_WITHIN):
            return await reader.read(65536)
    except TimeoutError:
        if not wire.owes:
            raise
    reader._transport.write_eof()  # type: ignore[attr-defined]  # a StreamReader does not give it away
    async with asyncio.timeout(_CLOSED_WITHIN):
        return await reader.read(65536)


def _judged(gateway: Gateway, found: Run) -> Iterator[str]:
    """What else is wrong, in words."""
    eventually(lambda: not _waiting(gateway), patience=120)
    for status, times in found.statuses.items():
        if status.startswith("5"):
            yield f"{times} answers of {status}"
    yield from _logs(gateway)
    rows = gateway.sql("SELECT to_jsonb(a) - 'model' AS row FROM audit a WHERE to_jsonb(a)::text LIKE '%kanarie%'")
    yield from (f"in the audit log: {row['row'][:300]}" for row in rows if CANARY.search(row["row"]))
    bad = gateway.sql("SELECT endpoint, status, reason FROM audit WHERE status >= 500 AND endpoint <> $1", _READY)
    yield from (f"a row of {row['status']}: {row['endpoint']} {row['reason']}" for row in bad)
    store = gateway.redis()
    for name in store.keys("*"):
        if CANARY.search(text(name)) or CANARY.search((store.dump(name) or b"").decode("latin-1")):
            yield f"in the store: {name!r}"
    store.close()
    for request in gateway.upstream.requests():
        if request["path"].partition("?")[0] not in http1.PATHS[:10] and not request["path"].startswith("/api/"):
            yield f"the upstream was asked for {request['path']}"
        if request["path"].startswith(("/api/pull", "/api/delete")):
            yield f"smuggled: {request['path']}"
    for part, mib in growth(found.before, found.after).items():
        if mib > GROWTH_MAX:
            yield f"{part} grew by {mib} MiB"


def _waiting(gateway: Gateway) -> int:
    """Events that are not in PostgreSQL yet."""
    store = gateway.redis()
    try:
        return sum(store.xlen(name) for name in store.keys("pd:*:ev"))
    finally:
        store.close()


def _logs(gateway: Gateway) -> Iterator[str]:
    """Every line of every part: no canary outside the names of models, and no 5xx."""
    for path in sorted((gateway.data_dir / "logs").iterdir()):
        with path.open(errors="replace") as lines:
            for line in lines:
                entry = _entry(line)
                status = entry.get("status")
                if isinstance(status, int) and status >= 500 and entry.get("path") != _READY:
                    yield f"{path.name}: {line[:400]}"
                if not CANARY.search(line):
                    continue
                named = (*_NAMED, "request_id") if entry.get("details") == _TOO_EARLY else _NAMED
                kept = {name: value for name, value in entry.items() if name not in named}
                told = json.dumps(kept) if entry else line
                if CANARY.search(told):
                    yield f"{path.name}: {line[:400]}"


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
