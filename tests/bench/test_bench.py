"""The bench itself in small, nothing timed: the load sees what the stub says, rows arrive, the report is true."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from itertools import count

import pytest

from tests.bench import growth, load, report, rows, subjects
from tests.postgresql import execute

UNARY = dict.fromkeys(("requests_per_second", "p50_at_1_ms", "p99_at_1_ms", "errors"), 1.0)
SEALED = (
    "bare_rsa4096_per_second", "pure_code_per_second", "pure_code_ratio", "per_second", "ratio", "cpu_us", "p50_ms",
    "p99_ms", "errors",
)  # fmt: skip  # names
SLOW = {"first_token_p50_ms": 1.0, "inter_token_p99_ms": 1.0, "cpu_seconds_per_1000_tokens": 0.1}
ATTACHED = """
SELECT count(*) FROM pg_inherits i JOIN pg_index x ON x.indexrelid = i.inhrelid WHERE x.indrelid = $1::text::regclass
"""
FAST = {"tokens_per_second": 1.0}


def written(**changes: object) -> dict[str, object]:
    """A report as a run makes it, with made-up figures."""
    bare = {**UNARY, f"{report.PARTS}envoy": 50.0}
    ours = {**UNARY, "p50_at_1_ms": 2.5, f"{report.PARTS}envoy": 70.0, f"{report.PARTS}policy-0": 30.0}
    unary = {subjects.CEILING: UNARY, "bare Envoy": bare, "Paddock": {**ours, "requests_per_second": 1500.0}}
    step = {f"{which}_{name}": 1.0 for which in ("empty", "grown") for name in ("cpu_us", "p50_ms", "p99_ms")}
    step |= {"cpu_us_ratio": 1.05, "p50_ms_ratio": 1.0, "p99_ms_ratio": 1.0, "errors": 0}
    return {
        "machine": {"cores": "2"},
        "took_seconds": {"short chat": 30.0, "growth": 200.0},
        "cold_start_seconds": 2.5,
        "short chat": unary,
        "/v1/models": unary,
        "slow streams": {"bare Envoy": SLOW, "Paddock": {**SLOW, "cpu_seconds_per_1000_tokens": 0.2}},
        "fast streams": {"bare Envoy": FAST, "Paddock": FAST},
        "resident": {"envoy": 60_000_000, "policy-0": 80_000_000, "processor-0": 70_000_000, "postgres": 10**9},
        "envelopes": dict.fromkeys(SEALED, 1.0),
        "growth": {"what": "much", "slower_percent": 5.0, "steps": [{"what": "2 keys", **step}]},
        **changes,
    }


def test_each_target_is_met_or_missed_by_its_own_bound() -> None:
    said = {target.measure: target.document() for target in report.targets(written())}
    met = {measure: (one["first_met"], one["then_met"]) for measure, one in said.items()}
    assert met == {
        "short chat, requests per second per core": (True, False),
        "added latency over bare Envoy at 1, p50": (True, False),
        "added latency over bare Envoy at 1, p99": (True, True),
        "CPU per 1000 streamed tokens, of bare Envoy's": (True, False),
        "added time to first token, p50": (True, True),
        "added inter-token time, p99": (True, True),
        "resident, Envoy and both services": (True, False),
        "`paddock up` to the first 200": (True, True),
        "slower with much": (True, False),
    }


def test_what_was_not_measured_is_not_met() -> None:
    nothing = report.Target("a measure", math.nan, "ms", 2, 1)
    assert not nothing.met(2) and "**missed**" in nothing.row()


def test_the_page_names_every_part() -> None:
    page = report.markdown(written())
    assert "| short chat, requests per second per core | 1,500 | 1,500: met | 4,000: **missed** |" in page
    assert (
        "| policy-0 | 30 | 30 |" in page and "| together | 100 | 100 |" in page and "| a bare Envoy | 50 | 50 |" in page
    )
    assert "| all | 230 |" in page
    assert "Growth" not in report.markdown({name: part for name, part in written().items() if name != "growth"})


def test_errors_of_every_part_count() -> None:
    some = written()
    assert report.errors(some) == 7  # three rows of each unary load and the envelopes' have one
    assert report.errors({**some, "envelopes": {"errors": 3}}) == 9
    assert report.errors({name: part for name, part in some.items() if name not in ("growth", "envelopes")}) == 6


def test_the_load_counts_what_the_stub_answers() -> None:
    with subjects.stub(pinned=False) as upstream:
        chats = (load.request("POST", "/api/chat", load.chat(f"chat {n}"), "none") for n in count())
        plain = load.run(upstream.url, chats, connections=2, seconds=30, most=3)
        streamed = load.request("POST", "/api/chat", load.chat("tokens=5 delay=1", stream=True), "none")
        streams = load.run(upstream.url, streamed, connections=2, seconds=30, most=1, spread=0.01)
    assert (plain.answers, plain.errors, len(plain.latencies)) == (6, 0, 6)
    assert (streams.answers, streams.errors, streams.tokens, len(streams.first_token)) == (2, 0, 10, 2)


def test_steps_grow_and_end_with_what_was_asked() -> None:
    assert growth.steps(100_000, 1000) == [(1, 1), (1, 10), (1, 1000), (1000, 1000), (1000, 100_000)]
    assert growth.steps(10, 1) == [(1, 1), (1, 10)]


@pytest.mark.parametrize("month", [1, 12])
def test_rows_stand_in_the_partition_of_the_month_with_its_indexes(database: str, month: int) -> None:
    now = datetime(2026, month, 20, 12, tzinfo=UTC)
    asyncio.run(rows.fill(database, 5000, now))
    [found] = asyncio.run(execute(database, "SELECT count(*), min(started_at), max(started_at) FROM audit"))
    assert found["count"] == 5000
    assert found["min"] == datetime(2026, month, 1, tzinfo=UTC) and found["max"] < now
    [row] = asyncio.run(execute(database, "SELECT * FROM audit WHERE started_at = $1", found["min"]))
    assert (row["tenant"], row["decision"], row["completion_tokens"], row["address"]) == (
        "grown-0000",
        "allowed",
        7,
        "127.0.0.1",
    )
    [indexes] = asyncio.run(execute(database, ATTACHED, f"audit_2026{month:02}"))
    assert indexes["count"] == 3
    [daily] = asyncio.run(execute(database, "SELECT count(*) FROM usage_daily"))
    assert daily["count"] == 500
