"""Seeds: one look at the ledger for all who wait for the same."""

from __future__ import annotations

import asyncio

import pytest

from policy.admission.seeding import Seeds
from policy.rules.faults import DatabaseDown, StoreDown
from policy.rules.settlement import Known, Seed

NOTHING = Seed(0, 0, 0, 0, 0)


class Book:
    """A ledger that answers when it is told to."""

    def __init__(self) -> None:
        self.looks: list[tuple[int, int]] = []
        self.answer = asyncio.Event()
        self.fault: Exception | None = None

    async def read(self, tenant_id: int, key_id: int) -> Known:
        self.looks.append((tenant_id, key_id))
        number = len(self.looks)
        await self.answer.wait()
        if self.fault is not None:
            raise self.fault
        return Known(Seed(0, 0, 0, 0, number), NOTHING)


def test_who_waits_for_the_same_shares_one_look() -> None:
    async def scenario() -> None:
        book = Book()
        seeds = Seeds(book.read)
        asking = [asyncio.ensure_future(seeds.read(1, 2)) for _ in range(5)]
        other = asyncio.ensure_future(seeds.read(1, 3))
        await asyncio.sleep(0)
        book.answer.set()
        assert {(await one).tenant.total for one in asking} == {1}
        assert (await other).tenant.total == 2
        assert book.looks == [(1, 2), (1, 3)]
        assert (await seeds.read(1, 2)).tenant.total == 3, "what was read is not kept"

    asyncio.run(scenario())


def test_a_fault_reaches_all_and_is_not_kept() -> None:
    async def scenario() -> None:
        book = Book()
        seeds = Seeds(book.read)
        asking = [asyncio.ensure_future(seeds.read(1, 2)) for _ in range(3)]
        await asyncio.sleep(0)
        book.fault = DatabaseDown("no answer")
        book.answer.set()
        for one in asking:
            with pytest.raises(DatabaseDown):
                await one
        book.fault = None
        assert (await seeds.read(1, 2)).tenant.total == 2

    asyncio.run(scenario())


def test_a_look_that_is_given_up_is_a_fault_for_those_who_wait_along() -> None:
    async def scenario() -> None:
        book = Book()
        seeds = Seeds(book.read)
        first, second, third = (asyncio.ensure_future(seeds.read(1, 2)) for _ in range(3))
        await asyncio.sleep(0)
        third.cancel()  # who waits along and leaves takes nothing down
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(StoreDown):
            await second
        with pytest.raises(asyncio.CancelledError):
            await first
        book.answer.set()
        assert (await seeds.read(1, 2)).tenant.total == 2

    asyncio.run(scenario())
