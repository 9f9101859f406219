"""Whether a full house is slower than an empty one: keys, tenants and ledger rows, step by step, beside a store that
stays empty. Both gateways take the same load in turns, so each ratio is of one minute of one machine. Before the first
step both are empty: what that row says is how much of the others is noise.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.bench import load, rows, subjects
from tests.bench.load import chat, percentile, request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.bench.subjects import Subject
    from tests.harness import Gateway

_TENANTS = """
INSERT INTO tenant (name, allow_all_models)
SELECT 'grown-' || n, true FROM generate_series((SELECT count(*) FROM tenant) + 1, $1::int) n
"""
_KEYS = """
INSERT INTO api_key (prefix, hash, tenant_id)
SELECT 'nz_' || lpad(k::text, 9, '0'), (SELECT hash FROM api_key LIMIT 1), (SELECT min(id) FROM tenant)
FROM generate_series((SELECT count(*) FROM api_key) + 1, $1::int) k
"""
_SPREAD = """
WITH every AS (SELECT array_agg(id) AS ids FROM tenant)
UPDATE api_key SET tenant_id = ids[1 + api_key.id % cardinality(ids)] FROM every
WHERE prefix LIKE 'nz\\_0%' AND tenant_id <> ids[1 + api_key.id % cardinality(ids)]
"""


def steps(keys: int, tenants: int) -> list[tuple[int, int]]:
    """How many tenants and keys there are at each step; each has all of the one before."""
    several = [(1, 1), (1, 10), (1, 1000), (tenants, 1000), (tenants, keys)]
    within = [(some, of_keys) for some, of_keys in several if some <= tenants and of_keys <= keys]
    return list(dict.fromkeys(within))


def measure(
    upstream: Subject, directory: Path, seconds: float, rounds: int, keys: int, tenants: int, ledger_rows: int,
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip  # so many sizes
    """What a request costs at each step, against the store that stays empty."""
    found: list[dict[str, Any]] = []
    with (
        subjects.paddock(upstream, directory / "empty") as (empty, _),
        subjects.paddock(upstream, directory / "grown") as (grown, gateway),
    ):
        for some, of_keys in steps(keys, tenants):
            begun = time.perf_counter()
            grow(gateway, some, of_keys)
            calm(grown)
            took = time.perf_counter() - begun
            what = f"{of_keys:,} {'keys' if of_keys > 1 else 'key'} of {some:,} {'tenants' if some > 1 else 'tenant'}"
            say(f"{what}, beside an empty store")
            found.append({"what": what, **compare(empty, grown, seconds, rounds), "growing_took_seconds": took})
        if ledger_rows:
            say(f"growing to {ledger_rows:,} ledger rows")
            begun = time.perf_counter()
            fill(gateway, ledger_rows)
            calm(grown)
            took = time.perf_counter() - begun
            what = f"{found[-1]['what']}, {ledger_rows:,} ledger rows"
            say(f"{what}, beside an empty store")
            found.append({"what": what, **compare(empty, grown, seconds, rounds), "growing_took_seconds": took})
    noise = abs(found[0]["slower_percent"])
    return {
        "steps": found,
        "what": f"{found[-1]['what']}, against an empty store (two empty ones differ by {noise:.0f} %)",
        "slower_percent": found[-1]["slower_percent"],
        "noise_percent": noise,
    }


def grow(gateway: Gateway, tenants: int, keys: int) -> None:
    gateway.sql(_TENANTS, tenants)
    gateway.sql(_KEYS, keys)
    gateway.sql(_SPREAD)
    gateway.sql("ANALYZE tenant, api_key")


def fill(gateway: Gateway, ledger_rows: int) -> None:
    """On both cores, for it is not what is measured; new processes of PostgreSQL have the cores of the first."""
    postgres = [gateway.instance.pids()["postgres"]]
    subjects.pin(postgres, subjects.GATEWAY_CORE, subjects.LOAD_CORE)
    try:
        asyncio.run(rows.fill(gateway.instance.running.database_url, ledger_rows, datetime.now(UTC)))
    finally:
        subjects.pin(postgres, subjects.GATEWAY_CORE)


def calm(subject: Subject, seconds: float = 30) -> None:
    """Wait until what growing set off (notices of keys, a checkpoint) is done."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        before = subject.cpu()
        time.sleep(1)
        if subject.cpu() - before < 0.1:
            return


def compare(empty: Subject, grown: Subject, seconds: float, rounds: int) -> dict[str, float]:
    """Medians over rounds, of ratios too: each is of two loads one after the other, now this one first, now that."""
    pairs = []
    for number in range(2 * rounds):
        order = (empty, grown) if number % 2 else (grown, empty)
        found = {id(subject): _load(subject, seconds / 2) for subject in order}
        pairs.append((found[id(empty)], found[id(grown)]))
    figures: dict[str, float] = {}
    for name in ("cpu_us", "p50_ms", "p99_ms"):
        figures[f"empty_{name}"] = statistics.median(one[name] for one, _ in pairs)
        figures[f"grown_{name}"] = statistics.median(other[name] for _, other in pairs)
        figures[f"{name}_ratio"] = statistics.median(other[name] / one[name] for one, other in pairs)
    figures["slower_percent"] = (figures["cpu_us_ratio"] - 1) * 100
    figures["errors"] = sum(one["errors"] + other["errors"] for one, other in pairs)
    return figures


def _load(subject: Subject, seconds: float) -> dict[str, float]:
    message = request("POST", "/api/chat", chat(), subject.key)
    load.run(subject.url, message, connections=4, seconds=0.1)
    before = subject.cpu()
    result = load.run(subject.url, message, connections=16, seconds=seconds)
    return {
        "cpu_us": (subject.cpu() - before) / max(result.answers, 1) * 1e6,
        "p50_ms": percentile(result.latencies, 0.5) * 1e3,
        "p99_ms": percentile(result.latencies, 0.99) * 1e3,
        "errors": result.errors,
    }
