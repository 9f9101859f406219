"""`policy/stores/timed.py`: what an observer hears of a call."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from policy.rules.faults import DatabaseDown, StoreDown
from policy.stores.timed import timed


@dataclass
class Heard:
    calls: list[tuple[str, str, bool]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __call__(self, store: str, operation: str, seconds: float, *, failed: bool = False) -> None:
        self.calls.append((store, operation, failed))
        self.seconds.append(seconds)


def test_a_call_is_the_same_call_and_its_time_is_heard() -> None:
    heard = Heard()

    async def add(one: int, *, other: int) -> int:
        await asyncio.sleep(0.01)
        return one + other

    assert asyncio.run(timed(heard, "redis", "add", add)(1, other=2)) == 3
    assert heard.calls == [("redis", "add", False)]
    assert heard.seconds[0] >= 0.009


@pytest.mark.parametrize("fault", [StoreDown, DatabaseDown])
def test_a_store_that_is_down_is_a_failure(fault: type[Exception]) -> None:
    heard = Heard()

    async def fail() -> None:
        raise fault("gone")

    with pytest.raises(fault):
        asyncio.run(timed(heard, "redis", "fail", fail)())
    assert heard.calls == [("redis", "fail", True)]


def test_a_call_that_is_cancelled_is_neither() -> None:
    heard = Heard()

    async def hang() -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await timed(heard, "redis", "hang", hang)()

    asyncio.run(scenario())
    assert heard.calls == []
