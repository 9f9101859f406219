"""The ledger over a real PostgreSQL and a real Valkey: events into rows, once, in whatever order and however often."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.admission.ledger import UNSEEN_SECONDS
from policy.rules.decision import Reason
from policy.rules.events import read
from policy.rules.faults import StoreDown
from policy.rules.judgement import Mode
from policy.rules.limits import Limits
from policy.rules.speeds import FIRST_GUESS
from policy.rules.tenants import Key, Tenant
from policy.stores.ledger_postgres import LedgerTables
from policy.stores.redis import KEYS
from tests.postgresql import execute
from tests.stores.books import DAY, LOG, NOTHING, START, audit, books, carry, entry, plan, served, usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.stores.cluster import Valkey


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
                assert (await tables.apply([read(fields) for _, fields in found.entries])).refused == []
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
        charged = []
        for batch in batches:
            if batch:
                async with tables.writing():
                    applied = await tables.apply([read(fields) for fields in batch])
                    assert applied.refused == []
                    charged += [(one.requests, one.prompt_tokens, one.completion_tokens) for one in applied.charges]
        await tables.close()
        assert charged == [day[4:7] for day in await usage(database)]  # what metrics count is what the rows say
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


def test_refusals_past_the_rate_are_one_row_for_each_address_and_minute(database: str, valkey: Valkey) -> None:
    async def scenario() -> None:
        async with books(database, valkey) as (ledger, store, _):
            store._kept = 3
            store.clock = str(60_000 * 1000)
            for number in range(10):
                event = {**LOG, "id": f"r{number}", "s": str(START + number), "reason": "key_wrong"}
                one = entry({**event, "addr": f"2001:db8::{number}"}, refused=True)
                await store.log(0, [one, entry({**event, "addr": "192.0.2.7"}, refused=number < 2)])
            await carry(ledger)
            await ledger.count_refusals()
            assert not await rows_past_the_rate(database), "the minute is not over"
            store.clock = str(60_000 * 1001 + 9_999)
            await ledger.count_refusals()
            assert not await rows_past_the_rate(database), "it may not be over by another node's clock"
            store.clock = str(60_000 * 1001 + 10_000)
            for _ in range(2):  # the second finds nothing left
                await ledger.count_refusals()
            minute = datetime(1970, 1, 1, 16, 40, tzinfo=UTC)
            assert await rows_past_the_rate(database) == [("2001:db8::/64", 7, minute)]
            assert await store.ask("EXISTS", *(keys.refusals for keys in KEYS)) == 0

    asyncio.run(scenario())


def test_answers_for_anybody_have_a_row_of_theirs_past_the_rate(database: str, valkey: Valkey) -> None:
    async def scenario() -> None:
        async with books(database, valkey) as (ledger, store, _):
            store._kept = 3
            store.clock = str(60_000 * 1000)
            events = [{**LOG, "id": f"r{number}", "s": str(START + number)} for number in range(10)]
            await store.log(0, [entry(event)._replace(open=True) for event in events])
            await store.log(0, [entry(event, refused=True)._replace(request=str(event["id"])) for event in events[:5]])
            store.clock = str(60_000 * 1002)
            await ledger.count_refusals()
            found = await execute(
                database, "SELECT request_id, decision, reason, requests FROM audit WHERE requests > 1 ORDER BY 1"
            )
            assert [tuple(row) for row in found] == [
                ("answers:1000:192.0.2.1", "allowed", "answers_past_rate", 7),
                ("refusals:1000:192.0.2.1", "denied", "refusals_past_rate", 2),
            ]

    asyncio.run(scenario())


def test_refusals_of_an_address_in_several_shards_are_added_up_once(
    database: str, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the process that did it died before all of them were forgotten."""

    async def scenario() -> None:
        async with books(database, valkey) as (ledger, store, _):
            store._kept = 3
            store.clock = str(60_000 * 1000)
            for shard, count in ((0, 10), (5, 6), (63, 3)):
                lines = [
                    {**LOG, "id": f"r{shard}-{n}", "s": str(START + n), "reason": "key_wrong"} for n in range(count)
                ]
                await store.log(shard, [entry(line, refused=True) for line in lines])
            store.clock = str(60_000 * 1002)
            forget = store.forget_refusals

            async def dies(shard: int, fields: Sequence[str]) -> None:
                if shard == 5:
                    raise StoreDown("killed")
                await forget(shard, fields)

            with monkeypatch.context() as patched:
                patched.setattr(store, "forget_refusals", dies)
                with pytest.raises(StoreDown):
                    await ledger.count_refusals()
            await ledger.count_refusals()
            ((_, requests, _),) = await rows_past_the_rate(database)
            assert requests == 7 + 3

    asyncio.run(scenario())


def test_a_refusal_is_told_of_once(database: str, valkey: Valkey) -> None:
    """By the stream, by a call that was repeated, out of the file; one with a row of its own or not."""

    async def scenario() -> None:
        async with books(database, valkey) as (ledger, store, _):
            store._kept = 3
            store.clock = str(60_000 * 1000)
            facts = {**LOG, "reason": "key_wrong", "id": "chosen-by-the-client"}
            lines = [entry({**facts, "s": str(START + n)}, refused=True) for n in range(8)]
            assert await store.log(0, lines[:6]) == [0, 1, 2, 3, 4, 5]
            assert await store.log(0, lines[:6]) == []
            assert await store.log(0, lines, again=True) == [6, 7]
            await carry(ledger)
            assert len(await audit(database)) == 3
            store.clock = str(60_000 * 1001 + 10_000)
            await ledger.count_refusals()
            ((_, requests, _),) = await rows_past_the_rate(database)
            assert requests == 5

    asyncio.run(scenario())


def test_a_flood_that_fills_the_memory_of_refusals_is_counted_by_the_stream_alone(
    database: str, valkey: Valkey
) -> None:
    async def scenario() -> None:
        async with books(database, valkey) as (_, store, _):
            store._kept = 3
            store.clock = str(60_000 * 1000)
            for first in range(0, 200_000, 5000):
                names = [name for n in range(5000) for name in (60_000 * 1000, f"r{first + n} 1")]
                await store.ask("ZADD", KEYS[0].told, *names)
            lines = [entry({**LOG, "id": f"n{n}", "s": str(START)}, refused=True) for n in range(10)]
            assert await store.log(0, lines) == list(range(10))
            assert await store.log(0, lines, again=True) == []
            assert await store.ask("ZCARD", KEYS[0].told) == 200_000
            store.clock = str(60_000 * 1002)
            assert await store.log(0, lines[:1], again=True) == [0]
            assert await store.ask("ZCARD", KEYS[0].told) == 1, "what is two minutes old is forgotten"

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
                await store.log(0, [entry(event)])
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
