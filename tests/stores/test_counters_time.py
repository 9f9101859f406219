"""The counters' clock: days and months of the calendar, waits to the millisecond, a clock that is set back."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.rules.decision import Reason
from policy.rules.judgement import Mode
from policy.rules.limits import Limits
from policy.stores.redis import open_store
from tests.stores.counting import NOW, UNUSED, Open, admit, flush, grant, key, plan, used

if TYPE_CHECKING:
    from tests.stores.cluster import Valkey


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
