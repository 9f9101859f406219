"""Floods beside a well-behaved client: it is served all the same, and about as quickly.

Calm and flood take turns in one run, so that both see the same machine. The client is one connection that asks for a
short chat, again and again, from 127.0.0.1; the floods come from 127.0.0.2 (`flood`), and Envoy's limit for addresses
is lifted: what is shown holds without it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.harness import MODELS
from tests.hostile.flood import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Client, Gateway

P99_FACTOR = 2.0


@dataclass
class Phase:
    """What the well-behaved client saw."""

    seconds: list[float] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)
    flooded: int = 0  # requests or connections of the flood

    @property
    def p99_ms(self) -> float:
        ordered = sorted(self.seconds)
        return round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1000, 2)

    @property
    def p50_ms(self) -> float:
        return round(sorted(self.seconds)[len(self.seconds) // 2] * 1000, 2)


@contextlib.contextmanager
def flood(kind: str, url: str, phase: Phase, *, share: float = 1.0) -> Iterator[None]:
    """Flood, at a share of the full rate, while the block runs; it runs only when the flood does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.hostile.flood", kind, url, str(share)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        while True:
            line = process.stdout.readline()
            assert line, f"the flood {kind} ended by itself"
            if int(line) > 0:
                break
        yield
    finally:
        process.kill()
        rest, _ = process.communicate()
        phase.flooded += int((rest.split() or [line.strip() or "0"])[-1])


def ask(client: Client, url: str, phase: Phase, *, seconds: float, least: int = 1) -> None:
    """Chats one after the other for so long, and at least so many."""
    parts = urlsplit(url)
    body = json.dumps({"model": MODELS[0], "messages": [{"role": "user", "content": "hi !tokens=1"}], "stream": False})
    headers = {"authorization": f"Bearer {client.key}", "content-type": "application/json"}
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port, timeout=30, source_address=("127.0.0.1", 0)
    )
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end or least > 0:
            began = time.monotonic()
            connection.request("POST", "/api/chat", body, headers)
            response = connection.getresponse()
            response.read()
            phase.seconds.append(time.monotonic() - began)
            phase.statuses.add(response.status)
            least -= 1
    finally:
        connection.close()


def measure(gateway: Gateway, kind: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Calm and flood by turns; latencies of both, and the ratio of their p99."""
    client, calm, stormy = gateway.client(), Phase(), Phase()
    ask(client, gateway.url, Phase(), seconds=1.0)
    for _ in range(rounds):
        ask(client, gateway.url, calm, seconds=seconds)
        with flood(kind, gateway.url, stormy):
            ask(client, gateway.url, stormy, seconds=seconds)
        time.sleep(0.5)  # what the flood left open is closed
    return {
        "flood": kind,
        "made": stormy.flooded,
        "asked": [len(calm.seconds), len(stormy.seconds)],
        "statuses": sorted(calm.statuses | stormy.statuses),
        "p50_ms": [calm.p50_ms, stormy.p50_ms],
        "p99_ms": [calm.p99_ms, stormy.p99_ms],
        "p99_ratio": round(stormy.p99_ms / calm.p99_ms, 2),
    }


def faults(found: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one measurement, in words."""
    if found["statuses"] != [200]:
        yield f"{found['flood']}: the well-behaved client got {found['statuses']}"
    if found["p99_ratio"] > P99_FACTOR:
        yield f"{found['flood']}: p99 went from {found['p99_ms'][0]} to {found['p99_ms'][1]} ms"


__all__ = ["KINDS", "Phase", "ask", "faults", "flood", "measure"]
