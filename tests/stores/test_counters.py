"""The counters over a real Valkey, one server and a cluster: what each promise means, one at a time.

`test_counters_model.py` plays them against the plain model; here is what a model does not show: many at once, one round
trip, large figures.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from policy.rules.decision import Reason
from policy.rules.events import Entry
from policy.rules.judgement import Mode
from policy.rules.limits import Limits
from policy.rules.settlement import Known, Seed
from policy.stores.redis import open_store, shard_of
from tests.stores.counting import DAY, MONTH, NOTHING, NOW, Open, admit, flush, grant, key, plan, used

if TYPE_CHECKING:
    from policy.rules.tenants import Key
    from tests.stores.cluster import Valkey


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
        lines = [Entry("2001:db8:0:1::9", refused, f"r{refused} 1", "{}") for refused in (True, False)]
        before = await counters.backlog()
        assert await counters.log(7, lines) == [0, 1]
        assert sum(await counters.backlog()) == sum(before) + 1
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
