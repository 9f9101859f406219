"""How the books stand: what waits to be carried to the ledger, and what is reserved, measured where it waits.

Who leads the ledger measures, once for all processes. Where this process cannot even ask for the lead, because a store
is down, perhaps nobody leads: then it measures too, since that is when the figures matter. Who leads no longer takes
its figures back, or they would stand beside the new leader's for ever.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from policy.rules.faults import StoreDown

EVERY = 2.0  # seconds


class Lead(Protocol):
    """The ledger writer of this process."""

    @property
    def leading(self) -> bool: ...

    @property
    def waits(self) -> bool:
        """For a store that is down."""


class Store(Protocol):
    """Where events wait and reservations stand."""

    async def standing(self) -> tuple[int, float, int]: ...


class Observer(Protocol):
    """Is told the figures. Its methods must not raise."""

    def ledger_at(self, lag_seconds: float, pending: int) -> None: ...
    def reservations_open(self, count: int) -> None: ...


async def watch(ledger: Lead, store: Store, observer: Observer) -> None:
    """For ever: measure and tell."""
    told = False
    while True:
        if not (ledger.leading or ledger.waits):
            if told:
                observer.ledger_at(0.0, 0)
                observer.reservations_open(0)
            told = False
        else:
            told = True
            try:
                pending, age, reserved = await store.standing()
            except StoreDown:
                pass  # the figures stay as they were; that the store is down shows elsewhere
            else:
                observer.ledger_at(age, pending)
                observer.reservations_open(reserved)
        await asyncio.sleep(EVERY)
