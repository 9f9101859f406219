"""`policy/admission/standing.py`: who measures how far the ledger is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policy.admission import standing
from policy.rules.faults import StoreDown

if TYPE_CHECKING:
    import pytest


@dataclass
class Lead:
    leading: bool = False
    waits: bool = False


@dataclass
class Store:
    """Its figures grow with every look; it is down for the first `down` of them."""

    down: int = 0
    looks: int = 0

    async def standing(self) -> tuple[int, float, int]:
        self.looks += 1
        if self.looks <= self.down:
            raise StoreDown("not now")
        return self.looks, self.looks / 10, 5


@dataclass
class Observer:
    told: list[tuple[float, int]] = field(default_factory=list)
    open: list[int] = field(default_factory=list)

    def ledger_at(self, lag_seconds: float, pending: int) -> None:
        self.told.append((lag_seconds, pending))

    def reservations_open(self, count: int) -> None:
        self.open.append(count)


def watched(lead: Lead, store: Store, monkeypatch: pytest.MonkeyPatch) -> Observer:
    """What an observer hears in the time of four looks."""
    monkeypatch.setattr(standing, "EVERY", 0)
    observer = Observer()

    async def scenario() -> None:
        watching = asyncio.ensure_future(standing.watch(lead, store, observer))
        for _ in range(4):
            await asyncio.sleep(0)
        watching.cancel()

    asyncio.run(scenario())
    return observer


def test_the_leader_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    observer = watched(Lead(leading=True), Store(), monkeypatch)
    assert observer.told[:2] == [(0.1, 1), (0.2, 2)]
    assert observer.open[:2] == [5, 5]


def test_who_can_reach_no_store_to_lead_measures_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(Lead(waits=True), Store(), monkeypatch).told


def test_who_only_follows_leaves_it_to_the_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    assert watched(Lead(), store, monkeypatch).told == []
    assert store.looks == 0


def test_who_leads_no_longer_takes_its_figures_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "EVERY", 0)
    lead, observer = Lead(leading=True), Observer()

    async def scenario() -> None:
        watching = asyncio.ensure_future(standing.watch(lead, Store(), observer))
        await asyncio.sleep(0)
        lead.leading = False
        for _ in range(4):
            await asyncio.sleep(0)
        watching.cancel()

    asyncio.run(scenario())
    assert observer.told == [(0.1, 1), (0.0, 0)]
    assert observer.open == [5, 0]


def test_a_store_that_is_down_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    observer = watched(Lead(leading=True), Store(down=2), monkeypatch)
    assert observer.told[0] == (0.3, 3)
