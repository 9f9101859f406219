"""The counters over a real Valkey, one server and a cluster: what each promise means, one at a time.

`test_counters_model.py` plays them against the plain model; here is what a model does not show: many at once, lost
stores, one round trip, large figures.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.rules.decision import Reason
from policy.rules.faults import StoreDown
from policy.rules.grant import Duty, Grant
from policy.rules.judgement import Mode, Plan, Tally
from policy.rules.limits import Limits
from policy.rules.settlement import Known, Seed, Settlement
from policy.rules.tenants import Key, Tenant
from policy.stores.memory import MemoryStore
from policy.stores.redis import KEYS, RedisStore, open_store, shard_of
from tests.stores.cluster import Valkey, running_valkey, valkey, valkey_cluster

if TYPE_CHECKING:
    from pathlib import Path

    from tests.stores.cluster import Cluster

__all__ = ["valkey", "valkey_cluster"]

NOW = 1_800_000_000_000
DAY = NOW // 86_400_000
MONTH = 202701
UNUSED = Known(Seed(0, 0, 0, 0, 0), Seed(0, 0, 0, 0, 0))
NOTHING = Known(Seed(DAY, 0, MONTH, 0, 0), Seed(DAY, 0, MONTH, 0, 0))
Open = Callable[[], Any]


@pytest.fixture(params=["one server", "cluster"])
def store(request: pytest.FixtureRequest) -> Open:
    """Opens an empty store."""
    server: Valkey | Cluster = request.getfixturevalue("valkey" if request.param == "one server" else "valkey_cluster")

    @asynccontextmanager
    async def opened() -> AsyncIterator[RedisStore]:
        found = await open_store(server.url, epoch="test", seconds=30)
        await flush(found)
        try:
            yield found
        finally:
            await found.close()

    return opened


async def flush(store: RedisStore) -> None:
    for shard in range(64):
        names = await store.ask("KEYS", f"{KEYS[shard].tag}*")
        for name in names:
            await store.ask("DEL", name)


def key(limits: Limits = Limits(), *, tenant: Limits = Limits(), number: int = 9, of: int = 7) -> Key:  # noqa: B008  # frozen
    return Key(number, f"nz_{number:09d}", "hash", Tenant(of, f"tenant-{of}", limits=tenant), limits=limits)


def plan(number: object, of: Key, **fields: Any) -> Plan:
    return Plan(
        **{
            "request_id": f"request-{number}", "started_at": NOW * 1000, "mode": Mode.RESERVE, "key": of,
            "endpoint": "/api/chat", "model": "m", "address": "192.0.2.1", "cap": 10, "explicit": True, **fields,
        }
    )  # fmt: skip


async def admit(store: RedisStore, asked: Plan, known: Known = NOTHING) -> Tally:
    tally = await store.admit(asked) or await store.admit(asked, known)
    assert tally is not None
    return tally


def grant(asked: Plan, tally: Tally) -> Grant:
    return Grant(
        asked.request_id, asked.started_at, Duty.METER, asked.endpoint, asked.model, False, asked.key.tenant.id,
        asked.key.tenant.name, asked.key.id, asked.key.prefix, tally.epoch, tally.prompt_tokens, tally.cap,
    )  # fmt: skip


def used(prompt: int | None, completion: int) -> Settlement:
    return Settlement(prompt, completion, exact=prompt is not None)


def test_no_budget_is_overdrawn_by_many_at_once(store: Open) -> None:
    """200 at once against a budget that pays for 20, while others settle for less than they reserved."""

    async def scenario() -> None:
        async with store() as counters:
            of = key(tenant=Limits(budget_total=200))
            await admit(counters, plan("first", of, mode=Mode.COUNT, cap=0))

            async def one(number: int) -> int:
                asked = plan(number, of)
                tally = await admit(counters, asked)
                if tally.refused:
                    assert tally.refused is Reason.BUDGET_TOTAL
                    return 0
                await asyncio.sleep(0.001 * (number % 7))
                await counters.settle(grant(asked, tally), used(0, spent := 1 + number % 10))
                return spent

            spent = sum(await asyncio.gather(*(one(number) for number in range(200))))
            tally = await admit(counters, plan("last", of, mode=Mode.COUNT, cap=0))
            assert tally.scopes[0].total == spent <= 200
            assert (tally.scopes[0].open, tally.scopes[0].under_way) == (0, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("limits", "granted"),
    [
        (Limits(concurrency=7), 7),
        (Limits(tpm=75), 7),
        (Limits(rpm=7), 7),
        (Limits(budget_day=79), 7),
        (Limits(budget_month=70), 7),
        (Limits(concurrency=9, tpm=1000, budget_total=30), 3),
    ],
)
def test_a_limit_is_a_limit_for_many_at_once(store: Open, limits: Limits, granted: int) -> None:
    async def scenario() -> None:
        async with store() as counters:
            for of in (key(limits), key(tenant=limits, number=10)):
                await flush(counters)
                tallies = await asyncio.gather(*(admit(counters, plan(number, of)) for number in range(100)))
                assert sum(tally.refused is None for tally in tallies) == granted

    asyncio.run(scenario())


def test_of_key_and_tenant_the_tightest_binds(store: Open) -> None:
    async def scenario() -> None:
        async with store() as counters:
            of = key(Limits(budget_day=30), tenant=Limits(budget_day=50))
            other = key(tenant=Limits(budget_day=50), number=10)
            granted = [(await admit(counters, plan(n, of))).refused for n in range(4)]
            assert granted == [None, None, None, Reason.BUDGET_DAY]
            granted = [(await admit(counters, plan(f"o{n}", other))).refused for n in range(3)]
            assert granted == [None, None, Reason.BUDGET_DAY]

    asyncio.run(scenario())


def test_a_cap_that_nobody_named_shrinks_to_what_is_left(store: Open) -> None:
    """Never refused while one token remains; one that was named must fit."""

    async def scenario() -> None:
        async with store() as counters:
            of = key(Limits(budget_total=25), tenant=Limits(tpm=1000))
            caps = []
            for number in range(3):
                asked = plan(number, of, cap=12, explicit=False)
                tally = await admit(counters, asked)
                caps.append((tally.refused, tally.cap))
                if tally.refused is None:
                    await counters.settle(grant(asked, tally), used(0, 12))
            assert caps == [(None, 12), (None, 12), (None, 1)]
            assert (await admit(counters, plan("explicit", of, cap=2))).refused is Reason.BUDGET_TOTAL
            # Two completions need a token each.
            await flush(counters)
            two = await admit(counters, plan("two", key(Limits(budget_total=1)), cap=20, explicit=False, completions=2))
            assert two.refused is Reason.BUDGET_TOTAL
            prompt = await admit(
                counters, plan("prompt", key(Limits(tpm=50)), cap=500, prompt_bytes=100, explicit=False)
            )
            assert prompt.refused is None
            assert prompt.cap == 50 - prompt.prompt_tokens > 0

    asyncio.run(scenario())


def test_a_repeated_check_holds_one_reservation_and_counts_one_request(store: Open) -> None:
    async def scenario() -> None:
        async with store() as counters:
            of = key(Limits(rpm=2, concurrency=1))
            first = await admit(counters, plan(1, of))
            again = await admit(counters, plan(1, of, cap=20))
            assert again.refused is None
            assert again.scopes == first.scopes
            tally = await admit(counters, plan(2, of))
            assert tally.refused is Reason.CONCURRENCY
            assert (tally.scopes[1].requests, tally.scopes[1].open, tally.scopes[1].under_way) == (1, 20, 1)
            # Its key has lost its limits before it is asked again: nothing is left behind.
            await admit(counters, plan(1, key(), cap=5))
            assert await counters.settle(grant(plan(1, of), again), used(0, 5)) == "settled"
            tally = await admit(counters, plan(3, of))
            assert (tally.scopes[1].open, tally.scopes[1].under_way, tally.scopes[1].total) == (0, 0, 5)

    asyncio.run(scenario())


def test_a_settlement_counts_once(store: Open) -> None:
    async def scenario() -> None:
        async with store() as counters:
            of = key()
            asked = plan(1, of)
            given = grant(asked, await admit(counters, asked))
            said = await asyncio.gather(*(counters.settle(given, used(3, 4)) for _ in range(20)))
            assert sorted(said) == ["done"] * 19 + ["settled"]
            tally = await admit(counters, plan(2, of))
            assert tally.scopes[0].total == tally.scopes[0].tokens == 7
            # What came too late is told to the ledger all the same, which knows best; as no second settlement.
            kinds = [fields[b"k"] for _, fields in (await counters.events(7, 100)).entries]
            assert (kinds.count(b"settle"), kinds.count(b"again")) == (1, 19)

    asyncio.run(scenario())


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
            await counters.log(7, [("192.0.2.1", False, "{}")] * 2001)
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


@pytest.mark.parametrize(
    ("before", "after", "same_day", "same_month"),
    [
        ("2028-02-28T23:59:59.9", "2028-02-29T00:00", False, True),
        ("2028-02-29T23:59:59.9", "2028-03-01T00:00", False, False),
        ("2027-02-28T23:59:59.9", "2027-03-01T00:00", False, False),
        ("2100-02-28T23:59:59.9", "2100-03-01T00:00", False, False),
        ("2026-12-31T23:59:59.9", "2027-01-01T00:00", False, False),
        ("2027-01-31T00:00", "2027-01-31T23:59:59.9", True, True),
        ("2027-04-30T23:59:59.9", "2027-05-01T00:00", False, False),
        ("2027-05-01T00:00", "2027-06-01T00:00", False, False),
    ],
)
def test_periods_are_those_of_the_calendar_in_utc(
    store: Open, before: str, after: str, same_day: bool, same_month: bool
) -> None:
    """A request is charged to the day and month of its admission, whenever it is settled; and the wait for a budget is
    until the period ends, to the millisecond."""

    def ms(text: str) -> int:
        return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)

    async def scenario() -> None:
        async with store() as counters:
            of = key(Limits(budget_day=100), tenant=Limits(budget_month=100))
            counters.clock = str(ms(before))
            open_over = plan("open over", of, cap=20)
            given = grant(open_over, await admit(counters, open_over, UNUSED))
            asked = plan("before", of, cap=60)
            await counters.settle(grant(asked, await admit(counters, asked)), used(0, 60))
            refused = await admit(counters, plan("refused", of, cap=50))
            midnight = ms(before) // 86_400_000 * 86_400_000 + 86_400_000
            first = ms(before[:8] + "01T00:00")
            month_end = next(
                day for day in range(first, first + 40 * 86_400_000, 86_400_000)
                if datetime.fromtimestamp(day / 1000, UTC).month != int(before[5:7])
            )  # fmt: skip
            assert refused.refused is Reason.BUDGET_MONTH, "the longer wait binds"
            assert refused.wait_ms == month_end - ms(before)
            assert midnight <= month_end
            counters.clock = str(ms(after))
            await counters.settle(given, used(0, 7))
            tally = await admit(counters, plan("after", of, mode=Mode.COUNT, cap=0))
            assert [figures.day for figures in tally.scopes] == [67 if same_day else 0] * 2
            assert [figures.month for figures in tally.scopes] == [67 if same_month else 0] * 2
            assert [figures.total for figures in tally.scopes] == [67] * 2

    asyncio.run(scenario())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    served=st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 50)), min_size=1, max_size=15),
    later=st.integers(0, 30_000),
    rpm=st.integers(1, 8),
    tpm=st.integers(60, 200),
    start=st.integers(NOW, NOW + 10_000),
)
def test_a_wait_is_as_long_as_it_must_be(
    valkey: Valkey, served: list[tuple[int, int]], later: int, rpm: int, tpm: int, start: int
) -> None:
    """After exactly the stated wait the same request passes, and a millisecond before that it does not."""

    async def scenario() -> None:
        counters = await open_store(valkey.url, epoch="test", seconds=30)
        await flush(counters)
        of = key(Limits(rpm=rpm), tenant=Limits(tpm=tpm))
        now = start
        for number, (pause, tokens) in enumerate(served):
            now += pause
            counters.clock = str(now)
            asked = plan(number, of, cap=tokens)
            tally = await admit(counters, asked)
            if tally.refused is None:
                await counters.settle(grant(asked, tally), used(0, tokens))
        now += later
        counters.clock = str(now)
        asked = plan("last", of, cap=50)
        tally = await admit(counters, asked)
        if tally.refused is not None:
            assert 0 < tally.wait_ms <= 60_000
            counters.clock = str(now + tally.wait_ms - 1)
            assert (await admit(counters, asked)).refused is not None
            counters.clock = str(now + tally.wait_ms)
            assert (await admit(counters, asked)).refused is None
        await counters.close()

    asyncio.run(scenario())


def test_a_clock_that_is_set_back_forgets_no_limit_and_keeps_nobody_out(store: Open) -> None:
    """Another machine took over, whose clock is behind."""

    async def scenario() -> None:
        async with store() as counters:
            of = key(Limits(rpm=3))
            for shift in (0, -250, -5000):
                counters.clock = str(NOW + shift)
                assert (await admit(counters, plan(shift, of))).refused is None
            tally = await admit(counters, plan("over", of))
            assert tally.refused is Reason.RATE_REQUESTS
            assert tally.wait_ms <= 65_000
            counters.clock = str(NOW - 5000 + tally.wait_ms)
            assert (await admit(counters, plan("later", of))).refused is None
            counters.clock = str(NOW - 3600_000)  # an hour: nobody waits for that
            assert (await admit(counters, plan("hour", of))).refused is None

    asyncio.run(scenario())


def test_large_figures_stay_exact(store: Open) -> None:
    """Lua knows doubles, and its JSON 14 digits of them."""
    large = 2**52 + 1

    async def scenario() -> None:
        async with store() as counters:
            of = key(tenant=Limits(budget_total=2**53, budget_day=10**18), of=2**44 + 7, number=2**45 + 1)
            known = Known(Seed(DAY, 1, MONTH, 2, large), Seed(DAY, 0, MONTH, 0, 0))
            counters.clock = str(NOW)
            asked = plan(1, of, cap=2**33 + 1)
            tally = await admit(counters, asked, known)
            assert tally.scopes[0].total == large
            counters.clock = str(NOW + 20_000)
            (expired,) = await counters.expired(shard_of(of.tenant.id))
            assert (expired.identity.tenant_id, expired.identity.key_id) == (2**44 + 7, 2**45 + 1)
            assert expired.identity.started_at == asked.started_at
            assert (expired.completion_tokens, expired.cap, expired.seen_at) == (0, 2**33 + 1, NOW * 1000)
            await counters.settle(grant(asked, tally), used(10**15 + 1, 10**14 + 3))
            found = await counters.events(shard_of(of.tenant.id), 10)
            assert found.entries[-1][1][b"u"] == b"1000000000000001 100000000000003 0"
            tally = await admit(counters, plan(2, of))
            assert tally.scopes[0].total == large + 10**15 + 10**14 + 4
            assert (tally.scopes[0].day, tally.scopes[0].month) == (10**15 + 10**14 + 5, 10**15 + 10**14 + 6)
            assert tally.scopes[0].tokens == 10**15 + 10**14 + 4

    asyncio.run(scenario())


@settings(max_examples=200, deadline=None)
@given(prompts=st.lists(st.tuples(st.integers(1, 10**7), st.integers(0, 10**7)), max_size=60))
def test_the_estimator_stays_within_its_bounds(prompts: list[tuple[int, int]]) -> None:
    """Whatever prompts cost: images, caches, nothing at all."""
    model = MemoryStore(NOW)
    for prompt_bytes, tokens in prompts:
        model.learn(7, "m", prompt_bytes, tokens)
        assert 500 <= model.ratios.get((7, "m"), 3500) <= 20_000
    assert 8 + 1000 * 0.05 <= model.estimate(7, "m", 1000) <= 8 + 2.2 * 1000 + 1


@pytest.mark.parametrize("bytes_per_token", [0.6, 2, 4.1, 7, 15])
def test_the_estimator_learns_what_a_model_makes_of_a_byte(store: Open, bytes_per_token: float) -> None:
    """After some dozens of requests it is right to a tenth above, and it keeps models apart."""

    async def scenario() -> None:
        async with store() as counters:
            of = key()
            for number in range(60):
                size = 200 + 37 * (number % 11)
                asked = plan(number, of, prompt_bytes=size)
                tally = await admit(counters, asked)
                await counters.settle(grant(asked, tally), used(round(size / bytes_per_token), 1))
            tally = await admit(counters, plan("now", of, prompt_bytes=10_000))
            assert 10_000 / bytes_per_token < tally.prompt_tokens < 10_000 / bytes_per_token * 1.25 + 8
            other = await admit(counters, plan("other", of, prompt_bytes=10_000, model="another"))
            assert other.prompt_tokens == 3858

    asyncio.run(scenario())


def test_refusals_past_the_rate_are_only_counted_for_a_network(valkey: Valkey) -> None:
    async def scenario() -> None:
        counters = await open_store(valkey.url, epoch="test", kept=3, seconds=30)
        await flush(counters)
        refused = [
            await admit(counters, plan(n, key(Limits(rpm=0)), address=f"2001:db8:0:1::{n}", cap=0)) for n in range(5)
        ]
        assert [tally.recorded for tally in refused] == [True, True, True, False, False]
        other = await admit(counters, plan("other", key(Limits(rpm=0)), address="2001:db8:0:2::1", cap=0))
        assert other.recorded
        assert await counters.log(7, [("2001:db8:0:1::9", True, "{}"), ("2001:db8:0:1::9", False, "{}")]) == 1
        await counters.close()

    asyncio.run(scenario())


def test_a_decision_is_one_command(valkey: Valkey) -> None:
    """An admission, a refusal and a settlement are one round trip each, as the server counts them."""

    async def scenario() -> None:
        counters = await open_store(valkey.url, epoch="test", seconds=30)
        await flush(counters)
        asked = plan(0, key(Limits(rpm=2), tenant=Limits(tpm=1000)))
        await counters.settle(grant(asked, await admit(counters, asked)), used(1, 1))
        with valkey.client() as client, client.monitor() as monitor:
            asked = plan(1, asked.key)
            tally = await counters.admit(asked)
            assert tally is not None and tally.refused is None
            refused = await counters.admit(plan(2, asked.key))
            assert refused is not None and refused.refused is Reason.RATE_REQUESTS
            await counters.settle(grant(asked, tally), used(1, 1))
            await counters.ping()
            seen = []
            while (command := monitor.next_command())["command"] != "PING":
                if command["client_type"] != "lua":
                    seen.append(command["command"].split()[0])
        assert seen == ["EVALSHA"] * 3
        await counters.close()

    asyncio.run(scenario())


def test_a_call_that_is_given_up_leaves_no_answer_for_another(store: Open) -> None:
    """Envoy cancels checks whose clients left."""

    async def scenario() -> None:
        async with store() as counters:
            # What each tenant has used tells whose answer it is.
            of = [key(of=number, tenant=Limits(rpm=10**6)) for number in range(40)]
            for number, one in enumerate(of):
                await admit(counters, plan(0, one), replace(NOTHING, tenant=Seed(DAY, 0, MONTH, 0, 1000 + number)))

            async def ask(number: int, one: Key) -> None:
                call = asyncio.ensure_future(counters.admit(plan(number, one)))
                if number % 3 == 0:
                    await asyncio.sleep(0.0002 * (one.tenant.id % 5))
                    call.cancel()
                    await asyncio.wait([call])
                else:
                    tally = await call
                    assert tally is not None
                    assert tally.scopes[0].total == 1000 + one.tenant.id

            for number in range(1, 12):
                await asyncio.gather(*(ask(number, one) for one in of))

    asyncio.run(scenario())


def test_a_server_that_forgot_its_scripts_is_told_them_again(store: Open) -> None:
    async def scenario() -> None:
        async with store() as counters:
            await admit(counters, plan(1, key()))
            await counters._link.run(lambda client: client.script_flush())
            assert (await admit(counters, plan(2, key()))).scopes[0].under_way == 1

    asyncio.run(scenario())


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    """With its append-only file it knows everything that it had answered; without, it lost everything."""

    async def scenario() -> None:
        for keeps in (True, False):
            with running_valkey(appendonly="yes" if keeps else "no", appendfsync="no") as server:
                counters = await open_store(server.url, epoch="test")
                given = []
                for number in range(50):
                    asked = plan(number, key())
                    given.append(grant(asked, await admit(counters, asked)))
                await asyncio.gather(*(counters.settle(one, used(1, 1)) for one in given[:25]))
                server.kill()
                with pytest.raises(StoreDown):
                    await counters.admit(plan("down", key()))
                await asyncio.to_thread(server.start)
                assert await counters.settle(given[0], used(1, 1)) == ("done" if keeps else "late")
                assert await counters.settle(given[30], used(1, 1)) == ("settled" if keeps else "late")
                tally = await admit(counters, plan("up", key()))
                assert tally.scopes[0].total == (26 * 2 if keeps else 2 * 2)
                assert tally.scopes[0].under_way == (24 if keeps else 0)
                await counters.close()

    asyncio.run(scenario())


def test_a_store_that_is_not_there_yet_is_found_later(tmp_path: Path) -> None:
    async def scenario() -> None:
        with running_valkey() as server:
            server.kill()
            counters = await open_store(server.url, epoch="test")
            with pytest.raises(StoreDown):
                await counters.ping()
            await asyncio.to_thread(server.start)
            assert (await admit(counters, plan(1, key()))).refused is None
            await counters.close()

    asyncio.run(scenario())


def test_a_cluster_that_could_not_be_asked_is_known_by_its_first_answer(
    valkey_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        import redis.asyncio

        async def unanswered(*_: object, **__: object) -> dict[str, object]:
            raise redis.ConnectionError("not there yet")

        with monkeypatch.context() as patched:
            patched.setattr(redis.asyncio.Redis, "info", unanswered)
            counters = await open_store(valkey_cluster.url, epoch="test", seconds=30)
        elsewhere = [number for number in range(64) if await _elsewhere(counters, number)]
        with pytest.raises(StoreDown, match="cluster"):
            await counters.admit(plan(1, key(of=elsewhere[0])))
        for number in range(64):
            assert (await admit(counters, plan(number, key(of=number)))).refused is None
        assert sum(await counters.backlog()) >= 64
        await flush(counters)
        await counters.close()

    asyncio.run(scenario())


async def _elsewhere(counters: RedisStore, shard: int) -> bool:
    """Whether a shard is on another node than the first."""
    slot = int(await counters.ask("CLUSTER", "KEYSLOT", KEYS[shard].about))
    return slot > 16384 // 3


def test_events_carry_what_the_ledger_needs(valkey: Valkey) -> None:
    async def scenario() -> None:
        counters = await open_store(valkey.url, epoch="test", seconds=30)
        await flush(counters)
        asked = plan(1, key())
        await counters.settle(grant(asked, await admit(counters, asked)), used(3, 4))
        found = await counters.events(7, 10)
        (_, admitted), (_, settled) = found.entries
        assert json.loads(admitted[b"e"])["id"] == json.loads(settled[b"e"])["id"] == "request-1"
        assert json.loads(settled[b"i"]) == {
            "s": str(NOW * 1000), "t": 7, "tn": "tenant-7", "k": 9, "kp": "nz_000000009", "model": "m",
            "ep": "/api/chat",
        }  # fmt: skip
        await counters.close()

    asyncio.run(scenario())
