"""Counters that begin: anew in a store that lost everything, from what the ledger knows, when a key gets limits."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from policy.rules.decision import Reason
from policy.rules.events import Entry, read
from policy.rules.faults import StoreDown
from policy.rules.limits import Limits
from policy.rules.settlement import Known, Seed
from policy.stores.redis import KEYS
from tests.stores.counting import DAY, MONTH, NOTHING, UNUSED, Open, admit, flush, grant, key, plan, used


def test_a_store_that_lost_everything_is_another_one(store: Open) -> None:
    """The same process begins the store's next life: what was granted in the one before is charged, once."""

    async def scenario() -> None:
        async with store() as counters:
            of = key(tenant=Limits(budget_total=100))
            asked = [plan(number, of) for number in range(3)]
            given = [grant(one, await admit(counters, one)) for one in asked]
            await flush(counters)
            # Before anybody was admitted again: nothing is counted here, but the event waits, and the seed adds it.
            assert await counters.settle(given[0], used(None, 4)) == "late"
            tally = await admit(counters, plan("next", of, cap=1))
            assert tally.epoch != given[0].epoch
            assert tally.scopes[0].total == 4
            assert await counters.settle(given[1], used(2, 4)) == "late"
            assert await counters.settle(given[1], used(2, 4)) == "done"
            tally = await admit(counters, plan("last", of, cap=1))
            assert (tally.scopes[0].total, tally.scopes[0].open) == (10, 1)

    asyncio.run(scenario())


def test_what_was_lost_is_charged_to_the_day_of_its_admission(store: Open) -> None:
    """The store loses everything while an answer runs over midnight, at a month's end."""

    async def scenario() -> None:
        async with store() as counters:
            evening = round(datetime(2027, 1, 31, 23, 59, tzinfo=UTC).timestamp() * 1000)
            counters.clock = str(evening)
            of = key(tenant=Limits(budget_day=100, budget_month=100, budget_total=100))
            asked = [plan(number, of, started_at=evening * 1000) for number in range(2)]
            given = [grant(one, await admit(counters, one, UNUSED)) for one in asked]
            await flush(counters)
            counters.clock = str(evening + 120_000)
            assert await counters.settle(given[0], used(0, 4)) == "late"  # its event is all there is
            figures = (await admit(counters, plan("next", of, cap=1), UNUSED)).scopes[0]
            assert (figures.day, figures.month, figures.total) == (0, 0, 4)
            assert await counters.settle(given[1], used(0, 5)) == "late"
            figures = (await admit(counters, plan("last", of, cap=1))).scopes[0]
            assert (figures.day, figures.month, figures.total) == (0, 0, 9)
            events = [read(fields) for _, fields in (await counters.events(7, 100)).entries]
            days = [event.facts["day"] for event in events if event.kind == "settlement"]
            assert days == [evening // 86_400_000] * 2, "the report's day"

    asyncio.run(scenario())


def test_a_rotated_key_and_the_one_before_have_one_set_of_counters(store: Open) -> None:
    """While both are good, and in a store that lost what it had: of events that wait, too."""

    async def scenario() -> None:
        async with store() as counters:
            bounds = Limits(rpm=10, concurrency=3, budget_total=100)
            old = key(bounds, number=9)
            new = replace(key(bounds, number=10), counts_as=9)
            asked = [plan(0, old), plan(1, new), plan(2, new)]
            given = [replace(grant(one, await admit(counters, one)), counts_as=one.key.counts_as or 0) for one in asked]
            tally = await admit(counters, plan(3, old))
            assert (tally.refused, tally.scopes[1].requests, tally.scopes[1].under_way) == (Reason.CONCURRENCY, 3, 3)
            assert await counters.settle(given[0], used(0, 5)) == "settled"
            assert await counters.settle(given[1], used(0, 10)) == "settled"
            (tally,) = [await admit(counters, plan(4, old))]
            assert (tally.refused, tally.scopes[1].total, tally.scopes[1].open) == (None, 15, 10)
            await flush(counters)
            assert await counters.settle(given[2], used(0, 20)) == "late"
            assert (await admit(counters, plan(5, old))).scopes[1].total == 20

    asyncio.run(scenario())


def test_a_key_that_gets_limits_while_it_is_used_has_used_what_it_used(store: Open) -> None:
    """In PostgreSQL, in the stream, and under way."""

    async def scenario() -> None:
        async with store() as counters:
            asked = [plan(number, key()) for number in range(3)]
            given = [grant(one, await admit(counters, one)) for one in asked]
            await counters.settle(given[0], used(0, 5))
            carried = await counters.events(7, 100)
            await counters.forget(carried)
            await counters.settle(given[1], used(0, 10))
            limited = key(Limits(budget_day=100))
            ledger = Known(NOTHING.tenant, Seed(DAY, 5, MONTH, 5, 5), carried.epoch, carried.last)
            today = replace(ledger.key, day=0, month=0)  # a policy whose clock is behind: another day
            assert (await admit(counters, plan("a", limited), ledger)).scopes[1].total == 15
            assert today.total == 5
            await counters.settle(given[2], used(0, 20))
            assert (await admit(counters, plan("b", limited))).scopes[1].total == 35

    asyncio.run(scenario())


def test_a_seed_from_before_something_was_carried_is_not_believed(store: Open) -> None:
    async def scenario() -> None:
        async with store() as counters:
            other, of = key(of=7 + 64), key()
            asked = plan(1, other)
            await counters.settle(grant(asked, await admit(counters, asked)), used(0, 5))
            first = await counters.events(7, 1)
            before = Known(NOTHING.tenant, NOTHING.key, first.epoch, "0-0")
            assert await counters.admit(plan(2, of)) is None
            await counters.forget(first)
            assert await counters.admit(plan(2, of), before) is None, "what was carried is in no sum of theirs"
            now = replace(before, event=first.last)
            assert await counters.admit(plan(2, of), now) is not None

    asyncio.run(scenario())


def test_a_ledger_that_is_far_behind_lets_nobody_in(store: Open) -> None:
    """To sum up a long queue would hold up everybody else."""

    async def scenario() -> None:
        async with store() as counters:
            await counters.log(7, [Entry("192.0.2.1", False, "r 1", "{}")] * 2001)
            with pytest.raises(StoreDown, match="behind"):
                await counters.admit(plan(1, key()), NOTHING)
            found = await counters.events(7, 1)
            await counters.forget(found)
            assert await counters.admit(plan(1, key()), Known(*_seeds(), found.epoch, found.last)) is not None

    asyncio.run(scenario())


def _seeds() -> tuple[Seed, Seed]:
    return NOTHING.tenant, NOTHING.key


def test_an_event_of_another_life_is_no_mark_in_this_one(store: Open) -> None:
    """The ledger was carried far in an earlier life of the store, on a machine whose clock was ahead."""

    async def scenario() -> None:
        async with store() as counters:
            of = key(of=7 + 64)
            asked = plan(1, of)
            await counters.settle(grant(asked, await admit(counters, asked)), used(0, 5))
            await counters.ask("DEL", KEYS[7].tenant(of.tenant.id))
            ahead = Known(*_seeds(), "another life", "9999999999999-0")
            assert (await admit(counters, plan(2, of), ahead)).scopes[0].total == 5

    asyncio.run(scenario())
