"""When stamps are written, and what happens to them while they cannot be."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from policy.admission.stamps import Stamps
from policy.rules.faults import DatabaseDown

if TYPE_CHECKING:
    from collections.abc import Mapping


class Written:
    """A store that keeps what it is given, or is down."""

    def __init__(self) -> None:
        self.batches: list[dict[int, datetime]] = []
        self.down = False

    async def stamp(self, used: Mapping[int, datetime]) -> None:
        if self.down:
            raise DatabaseDown
        self.batches.append(dict(used))


async def run_for(stamps: Stamps, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stamps.run(), seconds)


def test_a_key_is_stamped_once_a_minute_however_busy() -> None:
    store, now = Written(), datetime.now(UTC)
    stamps = Stamps(store, every=0.01)

    async def scenario() -> None:
        for seconds in range(0, 150, 10):
            stamps.used(1, now + timedelta(seconds=seconds))
            await run_for(stamps, 0.03)

    asyncio.run(scenario())
    assert store.batches == [{1: now + timedelta(minutes=minute)} for minute in range(3)]


def test_uses_of_many_keys_are_one_write() -> None:
    store, now = Written(), datetime.now(UTC)
    stamps = Stamps(store, every=0.01)
    for key_id in range(100):
        stamps.used(key_id, now)
    asyncio.run(run_for(stamps, 0.05))
    assert store.batches == [dict.fromkeys(range(100), now)]


def test_what_could_not_be_written_is_written_later() -> None:
    store, now = Written(), datetime.now(UTC)
    stamps = Stamps(store, every=0.01)
    store.down = True
    stamps.used(1, now)
    asyncio.run(run_for(stamps, 0.05))
    store.down = False
    stamps.used(2, now)
    asyncio.run(run_for(stamps, 0.05))
    assert store.batches == [{1: now, 2: now}]


def test_the_end_writes_what_is_left_and_does_not_hang() -> None:
    class Hung(Written):
        async def stamp(self, used: Mapping[int, datetime]) -> None:
            await asyncio.Event().wait()

    store, now = Written(), datetime.now(UTC)
    for store, batches in ((Written(), [{1: now}]), (Hung(), [])):
        stamps = Stamps(store, every=60)
        stamps.used(1, now)
        asyncio.run(asyncio.wait_for(run_for(stamps, 0.01), 3))
        assert store.batches == batches
