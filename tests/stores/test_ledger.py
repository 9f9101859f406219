"""The ledger over a real PostgreSQL and a real Valkey: events into rows, once, in whatever order and however often."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.admission.ledger import UNSEEN_SECONDS, Ledger
from policy.rules.decision import Reason
from policy.rules.events import read
from policy.rules.faults import DatabaseDown
from policy.rules.grant import Duty, Grant
from policy.rules.judgement import Mode, Plan
from policy.rules.limits import Limits
from policy.rules.settlement import Known, Seed, Settlement
from policy.rules.speeds import FIRST_GUESS
from policy.rules.tenants import Key, Tenant
from policy.stores.ledger_postgres import LedgerTables, seeds
from policy.stores.migrate import upgrade
from policy.stores.redis import KEYS, RedisStore, open_store
from tests.postgresql import execute
from tests.stores.cluster import valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from policy.rules.judgement import Tally
    from tests.postgresql import PostgreSQL
    from tests.stores.cluster import Valkey

__all__ = ["valkey"]

DAY = 1_800_000_000 // 86400
START = 1_800_000_000_123_457
TENANT = Tenant(7, "acme", limits=Limits(budget_day=10**6))
KEY = Key(9, "nz_abcdefghi", "hash", TENANT)
NOTHING = Known(Seed(DAY, 0, 0, 0, 0), Seed(DAY, 0, 0, 0, 0))
LOG = {
    "t": 7, "tn": "acme", "kp": "nz_abcdefghi", "model": "llama3.1:8b", "ep": "/api/chat", "method": "POST",
    "addr": "192.0.2.1", "st": 200, "reason": "", "nf": False, "flags": "", "in": 100, "out": 200, "us": 3000,
    "up_us": 1000,
}  # fmt: skip


@asynccontextmanager
async def books(database: str, valkey: Valkey) -> AsyncIterator[tuple[Ledger, RedisStore, LedgerTables]]:
    """An empty counter store, and a ledger that leads."""
    store = await open_store(valkey.url, epoch="test", seconds=30)
    tables = LedgerTables(database)
    try:
        await store.ask("FLUSHALL")
        ledger = Ledger(store, tables, retention_days=400, kept=3)
        assert await tables.lead()
        yield ledger, store, tables
    finally:
        await tables.close()
        await store.close()


def plan(number: int, **fields: Any) -> Plan:
    return Plan(
        **{
            "request_id": f"request-{number}", "started_at": START + number, "mode": Mode.RESERVE, "key": KEY,
            "endpoint": "/api/chat", "model": "llama3.1:8b", "address": "192.0.2.1", "prompt_bytes": 100, "cap": 50,
            **fields,
        }
    )  # fmt: skip


def grant(of: Plan, tally: Tally) -> Grant:
    return Grant(
        of.request_id, of.started_at, Duty.METER, of.endpoint, of.model, True, of.key.tenant.id, of.key.tenant.name,
        of.key.id, of.key.prefix, tally.epoch, tally.prompt_tokens, tally.cap,
    )  # fmt: skip


async def served(store: RedisStore, number: int, prompt: int = 10, completion: int = 5) -> Grant:
    """One request from admission to log."""
    asked = plan(number)
    tally = await store.admit(asked, NOTHING)
    assert tally is not None and tally.refused is None
    given = grant(asked, tally)
    await store.settle(given, Settlement(prompt, completion, exact=True, event={"st": 200, "outcome": "completed"}))
    await store.log(7, [("192.0.2.1", False, json.dumps({**LOG, "id": asked.request_id, "s": str(asked.started_at)}))])
    return given


async def carry(ledger: Ledger) -> None:
    while await ledger.carry():
        pass


async def audit(database: str) -> list[dict[str, Any]]:
    return [dict(row) for row in await execute(database, "SELECT * FROM audit ORDER BY started_at, request_id")]


async def usage(database: str) -> list[tuple[Any, ...]]:
    rows = await execute(database, "SELECT * FROM usage_daily ORDER BY day, tenant_id, key_id, model")
    return [tuple(row) for row in rows]


def test_a_request_is_one_row_and_its_tokens_are_counted_once(database: str, valkey: Valkey) -> None:
    async def scenario() -> None:
        async with books(database, valkey) as (ledger, store, _):
            for number in range(3):
                await served(store, number)
            await carry(ledger)
            rows = await audit(database)
            assert [row["request_id"] for row in rows] == ["request-0", "request-1", "request-2"]
            row = rows[1]
            assert row["started_at"] == datetime.fromtimestamp(1_800_000_000, UTC).replace(microsecond=123_458)
            assert {name: row[name] for name in ("tenant_id", "tenant", "key_id", "key_prefix", "model")} == {
                "tenant_id": 7, "tenant": "acme", "key_id": 9, "key_prefix": "nz_abcdefghi", "model": "llama3.1:8b",
            }  # fmt: skip
            assert (row["decision"], row["reason"], row["outcome"]) == ("allowed", "", "completed")
            assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (10, 5, False)
            assert (row["status"], row["bytes_in"], row["bytes_out"], row["duration_us"]) == (200, 100, 200, 3000)
            [sums] = await usage(database)
            assert sums[1:8] == (7, 9, "llama3.1:8b", 3, 30, 15, 0)
            assert await store.backlog() == [0] * 64

    asyncio.run(scenario())


def test_events_that_were_written_and_not_dropped_are_written_again_to_no_effect(database: str, valkey: Valkey) -> None:
    """A writer killed between its commit and dropping the events; the next one finds them all."""

    async def scenario() -> None:
        async with books(database, valkey) as (ledger, store, tables):
            await served(store, 1)

            async with tables.writing():
                found = await store.events(7, 10)
                assert await tables.apply([read(fields) for _, fields in found.entries]) == []
                await tables.advance([found])
            before = await audit(database), await usage(database)
            await tables.close()
            assert await tables.lead()
            await served(store, 2)
            await carry(ledger)
            after = await audit(database), await usage(database)
            assert after[0][0] == before[0][0]
            assert after[1][0][1:8] == (7, 9, "llama3.1:8b", 2, 20, 10, 0)

    asyncio.run(scenario())


def test_of_two_writers_one_leads_and_the_other_takes_over(database: str, valkey: Valkey) -> None:
    async def scenario() -> None:
        async with books(database, valkey) as (_, _, first):
            second = LedgerTables(database)
            assert await first.lead() and not await second.lead()
            [row] = await execute(
                database,
                "SELECT pg_terminate_backend(pid) AS gone FROM pg_locks WHERE locktype = 'advisory' AND granted"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            )
            assert row["gone"]
            await until(second.lead)  # the server takes a moment to end a session
            with pytest.raises(DatabaseDown):
                async with first.writing():
                    pass
            assert not await first.lead()
            await second.close()

    asyncio.run(scenario())


EVENTS = [
    {b"k": b"admit", b"v": b"ok", b"e": json.dumps({
        "id": "r", "s": str(START), "t": 7, "tn": "acme", "k": 9, "kp": "nz_abcdefghi", "model": "m", "ep": "/api/chat",
        "addr": "192.0.2.1", "mode": "reserve", "reason": ""}).encode()},
    {b"k": b"settle", b"d": str(DAY).encode(), b"u": b"10 5 1", b"i": json.dumps({
        "s": str(START), "t": 7, "tn": "acme", "k": 9, "kp": "nz_abcdefghi", "model": "m", "ep": "/api/chat"}).encode(),
        b"e": json.dumps({"id": "r", "st": 200, "ttft": 5, "load": 1, "outcome": "aborted"}).encode()},
    {b"k": b"again", b"d": str(DAY).encode(), b"u": b"99 99 1", b"i": json.dumps({
        "s": str(START), "t": 7, "tn": "acme", "k": 9, "kp": "nz_abcdefghi", "model": "m", "ep": "/api/chat"}).encode(),
        b"e": json.dumps({"id": "r", "outcome": "lost"}).encode()},
    {b"k": b"log", b"e": json.dumps({**LOG, "id": "r", "s": str(START), "st": 499, "model": "m"}).encode()},
]  # fmt: skip
# What a refusal leaves, when Envoy answered in spite of an admission: its check took too long.
REFUSED = [
    {**EVENTS[0]},
    {b"k": b"log", b"e": json.dumps({
        **LOG, "id": "r", "s": str(START), "st": 503, "reason": "fault", "nf": True, "t": None, "tn": "", "kp": "",
        "model": "", "ep": "/api/chat"}).encode()},
]  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_events_in_any_order_and_any_batches_make_the_same_row(database: str, data: st.DataObject) -> None:
    """Of settlements the first counts, so those keep their order."""
    events = data.draw(st.sampled_from((EVENTS, REFUSED)))
    orders = st.permutations(range(len(events)))
    order = data.draw(orders if events is REFUSED else orders.filter(lambda order: order.index(1) < order.index(2)))
    repeated = data.draw(st.lists(st.sampled_from(order), max_size=3))
    sequence = [events[i] for i in [*order, *(i for i in repeated if i != 2)]]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(sequence)))))

    async def written(batches: list[list[dict[bytes, bytes]]]) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]]]:
        tables = LedgerTables(database)
        await execute(database, "TRUNCATE audit, usage_daily")
        assert await tables.lead()
        for batch in batches:
            if batch:
                async with tables.writing():
                    assert await tables.apply([read(fields) for fields in batch]) == []
        await tables.close()
        rows = await audit(database)
        for row in rows:
            row["settled_at"] = row["settled_at"] is not None
        return rows, await usage(database)

    async def scenario() -> None:
        batches = [sequence[a:b] for a, b in zip([0, *cuts], [*cuts, len(sequence)], strict=True)]
        found = await written(batches)
        assert found == await written([events])
        [row] = found[0]
        if events is EVENTS:
            assert (row["prompt_tokens"], row["completion_tokens"], row["status"]) == (10, 5, 499)
            assert found[1][0][4:7] == (1, 10, 5)
        else:
            assert (row["decision"], row["reason"], row["key_prefix"]) == ("denied", "fault", "nz_abcdefghi")
            assert found[1] == []

    asyncio.run(scenario())


POISON = [
    {"k": "admit", "v": "ok", "e": "{"},
    {"k": "admit", "v": "ok", "e": "[]"},
    {"k": "nonsense"},
    {"k": "log", "e": json.dumps({**LOG, "id": "x", "s": "12", "st": 10**12})},
    {"k": "log", "e": json.dumps({**LOG, "id": "x", "s": "9" * 18})},
    {"k": "log", "e": json.dumps({**LOG, "id": "x", "s": "not a time"})},
    {"k": "settle", "d": "1", "u": "1 1 0", "i": "{}", "e": "{}"},
    {"k": "settle", "d": str(10**10), "u": "1 1 0", "e": '{"id": "x"}', "i": json.dumps({
        "s": str(START), "t": 1, "tn": "", "k": 1, "kp": "", "model": "m", "ep": ""})},
    {"k": "settle", "d": "1", "u": "1 1", "e": '{"id": "x"}', "i": "{}"},
    {},
]  # fmt: skip
TEXTS = [b"a\x00b", b"\xff\xfe", "\ud800".encode("utf-8", "surrogatepass"), b"x" * 5000, "ünï".encode()]


def test_an_event_that_no_table_takes_is_set_aside_and_the_others_go_on(database: str, valkey: Valkey) -> None:
    async def scenario() -> None:
        async with books(database, valkey) as (ledger, store, _):
            with valkey.client() as client:
                await served(store, 1)
                for poison in POISON:
                    client.xadd(KEYS[7].events, {"e": "nothing", **poison})
                await served(store, 2)
            await carry(ledger)
            assert [row["request_id"] for row in await audit(database)] == ["request-1", "request-2"]
            assert (await usage(database))[0][4:7] == (2, 20, 10)
            kept = await execute(database, "SELECT * FROM ledger_quarantine ORDER BY event")
            assert len(kept) == len(POISON)
            assert json.loads(kept[0]["fields"]) == POISON[0]
            assert await store.backlog() == [0] * 64

    asyncio.run(scenario())


@pytest.mark.parametrize("text", TEXTS, ids=["nul", "no-utf8", "surrogate", "long", "unicode"])
def test_a_hostile_text_is_cleaned_and_its_row_is_written(database: str, valkey: Valkey, text: bytes) -> None:
    async def scenario() -> None:
        async with books(database, valkey) as (ledger, store, _):
            event = json.dumps({**LOG, "id": "r", "s": str(START), "ep": "@"}).encode().replace(b"@", text)
            escaped = json.dumps({**LOG, "id": "q", "s": str(START), "ep": text.decode("utf-8", "surrogateescape")})
            with valkey.client() as client:
                client.xadd(KEYS[7].events, {"k": "log", "e": event})
            await store.log(7, [("192.0.2.1", False, escaped)])
            await carry(ledger)
            rows = await audit(database)
            # A raw NUL is no JSON: that one is set aside. All others are rows.
            assert [row["request_id"] for row in rows] == (["q"] if b"\0" in text else ["q", "r"])
            assert all(0 < len(row["endpoint"]) <= 1000 for row in rows)

    asyncio.run(scenario())


def test_refusals_past_the_rate_are_one_row_for_each_address_and_minute(database: str, valkey: Valkey) -> None:
    async def scenario() -> None:
        async with books(database, valkey) as (ledger, store, _):
            store._kept = 3
            store.clock = str(60_000 * 1000)
            for number in range(10):
                event = json.dumps({**LOG, "id": f"r{number}", "s": str(START + number), "reason": "key_wrong"})
                await store.log(0, [(f"2001:db8::{number}", True, event), ("192.0.2.7", number < 2, event)])
            await carry(ledger)
            await ledger.count_refusals()
            assert not await rows_past_the_rate(database), "the minute is not over"
            store.clock = str(60_000 * 1001)
            for _ in range(2):  # the second finds nothing left
                await ledger.count_refusals()
            minute = datetime(1970, 1, 1, 16, 40, tzinfo=UTC)
            assert await rows_past_the_rate(database) == [("2001:db8::/64", 7, minute)]

    asyncio.run(scenario())


async def rows_past_the_rate(database: str) -> list[tuple[Any, ...]]:
    found = await execute(
        database, "SELECT address, requests, started_at FROM audit WHERE reason = 'refusals_past_rate'"
    )
    return [tuple(row) for row in found]


def test_what_nobody_settles_is_settled_by_what_is_known(database: str, valkey: Valkey) -> None:
    async def scenario() -> None:
        async with books(database, valkey) as (ledger, store, _):
            store.clock = str(START // 1000)
            prompt = 0
            for number in range(4):
                tally = await store.admit(plan(number), NOTHING)
                assert tally is not None
                prompt = tally.prompt_tokens
            await store.renew(7, [("request-1", 33)])
            # Envoy tells of the third that no upstream ever saw it, and of the fourth that it was answered with 503.
            for number, facts in ((2, {"nf": True, "st": 0}), (3, {"nf": True, "st": 503, "reason": "fault"})):
                event = {**LOG, "id": f"request-{number}", "s": str(START + number), **facts}
                await store.log(0, [("192.0.2.1", False, json.dumps(event))])
            await carry(ledger)
            await ledger.sweep()
            assert await store.open_reservations() == 4, "their leases are not over"
            store.clock = str(START // 1000 + 15_000)
            await ledger.sweep()
            await carry(ledger)
            assert await store.open_reservations() == 0
            found = [
                (row["outcome"], row["prompt_tokens"], row["completion_tokens"], row["estimated"])
                for row in await audit(database)
            ]
            assert found == [
                ("lost", prompt, 0, True),
                ("lost", prompt, 33 + round(FIRST_GUESS * UNSEEN_SECONDS), True),
                ("not_forwarded", 0, 0, False),
                ("not_forwarded", 0, 0, False),
            ]

    asyncio.run(scenario())


def test_seeds_say_what_was_used_and_up_to_which_event(database: str, valkey: Valkey) -> None:
    async def scenario() -> None:
        today = datetime(2027, 1, 15, tzinfo=UTC).date()
        async with books(database, valkey) as (ledger, store, _):
            connection = await asyncpg.connect(database)
            assert await seeds(connection, 7, 9, today) == Known(
                Seed(20833, 0, 202701, 0, 0), Seed(20833, 0, 202701, 0, 0)
            )
            store.clock = str(round(datetime(2027, 1, 15, 8, tzinfo=UTC).timestamp() * 1000))
            await served(store, 1)
            found = await store.events(7, 10)
            await carry(ledger)
            await execute(
                database,
                "INSERT INTO usage_daily SELECT day, tenant_id, key_id, model, 1, tokens, 0, 0, 0, 0, 0 FROM (VALUES"
                " (date '2027-01-01', 7, 9, 'a', 100), (date '2026-12-31', 7, 9, 'a', 1000),"
                " (date '2027-01-15', 7, 8, 'a', 7), (date '2027-01-15', 8, 9, 'a', 5)"
                ") AS v (day, tenant_id, key_id, model, tokens)",
            )
            assert await seeds(connection, 7, 9, today) == Known(
                Seed(20833, 22, 202701, 122, 1122), Seed(20833, 15, 202701, 115, 1115), found.epoch, found.last
            )
            await connection.close()

    asyncio.run(scenario())


def test_seeds_wait_for_events_that_are_being_written(database: str, valkey: Valkey) -> None:
    """They have been read from a store that may lose them at any moment: a sum without them would be too small."""

    async def scenario() -> None:
        today = datetime(2027, 1, 15, tzinfo=UTC).date()
        async with books(database, valkey) as (_, store, tables):
            await served(store, 1)
            connection = await asyncpg.connect(database)
            async with asyncio.TaskGroup() as tasks:
                async with tables.writing():
                    found = await store.events(7, 10)
                    await store.ask("FLUSHALL")
                    asking = tasks.create_task(seeds(connection, 7, 9, today))
                    await asyncio.wait([asking], timeout=0.1)
                    assert not asking.done()
                    assert await tables.apply([read(fields) for _, fields in found.entries]) == []
                    await tables.advance([found])
            assert asking.result().tenant.total == 15
            await connection.close()

    asyncio.run(scenario())


def test_a_database_that_dies_is_waited_for(own_postgresql: PostgreSQL, valkey: Valkey) -> None:
    database = own_postgresql.new_database()

    async def scenario() -> None:
        await upgrade(database)
        async with books(database, valkey) as (ledger, store, _), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(ledger.run())
            await served(store, 1)
            await until(lambda: _settled(database, 1))
            own_postgresql.stop()
            await served(store, 2)

            async def waits() -> bool:
                return ledger.waits

            await until(waits)
            assert not running.done()
            await asyncio.to_thread(own_postgresql.start)
            await until(lambda: _settled(database, 2))
            running.cancel()

    asyncio.run(scenario())


async def _settled(database: str, count: int) -> bool:
    [row] = await execute(database, "SELECT count(*) AS n FROM audit WHERE settled_at IS NOT NULL")
    return bool(row["n"] == count)


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not await true():  # noqa: ASYNC110  # another program's state has no event of ours
            await asyncio.sleep(0.02)


def test_a_fault_that_nobody_foresaw_does_not_end_the_ledger(
    database: str, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with books(database, valkey) as (ledger, store, _), asyncio.TaskGroup() as tasks:
            monkeypatch.setattr("policy.admission.ledger.FAULT_SECONDS", 0.01)
            faults = iter([RuntimeError("out of the blue"), asyncpg.DiskFullError("no space left on device")])
            backlog = store.backlog

            async def faulty() -> list[int]:
                for fault in faults:
                    raise fault
                return await backlog()

            store.backlog = faulty  # type: ignore[method-assign]  # what is out of anybody's control
            await served(store, 1)
            running = tasks.create_task(ledger.run())
            await until(lambda: _settled(database, 1))
            running.cancel()

    asyncio.run(scenario())


def test_partitions_are_made_filled_and_dropped_by_utc_months(database: str) -> None:
    async def scenario() -> None:
        # A server in another time zone: its midnight is not ours.
        name = database.split("/")[3].split("?")[0]
        await execute(database, f"ALTER DATABASE {name} SET timezone TO 'Pacific/Auckland'")
        tables = LedgerTables(database)
        assert await tables.lead()
        rows = ["2026-10-31T23:59:59.9+00", "2026-11-01T00:00+00", "2026-11-30T23:59+00", "2027-03-01T00:00+00"]
        for number, start in enumerate(rows):
            await execute(
                database,
                "INSERT INTO audit (request_id, started_at, decision) VALUES ($1, $2, 'denied')",
                str(number),
                datetime.fromisoformat(start),
            )
        await tables.arrange(datetime(2026, 11, 5, tzinfo=UTC), 400)
        assert await partitions(database) == {
            "audit_default": 1, "audit_202610": 1, "audit_202611": 2, "audit_202612": 0,
        }  # fmt: skip
        await tables.arrange(datetime(2026, 11, 5, tzinfo=UTC), 400)  # again: nothing to do
        await tables.arrange(datetime(2027, 2, 28, tzinfo=UTC), 100)
        assert await partitions(database) == {
            "audit_default": 0, "audit_202611": 2, "audit_202612": 0, "audit_202702": 0, "audit_202703": 1,
        }  # fmt: skip
        await tables.close()

    asyncio.run(scenario())


async def partitions(database: str) -> dict[str, int]:
    """Rows of each partition of the audit table."""
    there = await execute(
        database, "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'audit'::regclass"
    )
    filled = await execute(database, "SELECT tableoid::regclass::text AS name, count(*) AS n FROM audit GROUP BY 1")
    return {row["name"]: 0 for row in there} | {row["name"]: row["n"] for row in filled}


def test_a_refusal_is_recorded_with_its_reason(database: str, valkey: Valkey) -> None:
    async def scenario() -> None:
        async with books(database, valkey) as (ledger, store, _):
            await store.admit(plan(1, mode=Mode.DENY, reason=Reason.MODEL, cap=0, prompt_bytes=0), NOTHING)
            tally = await store.admit(plan(2, key=Key(9, "nz_abcdefghi", "h", Tenant(7, "acme", limits=Limits(rpm=1)))))
            assert tally is not None and tally.refused is Reason.RATE_REQUESTS
            await carry(ledger)
            assert [(row["decision"], row["reason"]) for row in await audit(database)] == [
                ("denied", "model_not_available"),
                ("denied", "rate_requests"),
            ]
            assert await usage(database) == []

    asyncio.run(scenario())
