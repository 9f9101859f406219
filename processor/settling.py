"""Settlements on their way to the counter store, until the store has them.

The end of an answer waits for its settlement: once a client has the last byte, what it used is written. A store that
does not answer is waited for that long and no longer; the settlement stays here and is tried again until it is taken.
Settling twice charges once (the store sees to it), so trying again is always right.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from policy.rules.faults import StoreDown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policy.rules.grant import Grant
    from policy.rules.settlement import Settlement
    from processor.exchange import Exchange

log = logging.getLogger(__name__)

RENEW_SECONDS = 2.0


class Counters(Protocol):
    """Where reservations stand."""

    async def settle(self, grant: Grant, settlement: Settlement) -> str: ...
    async def renew(self, tenant_shard: int, progress: Iterable[tuple[str, int]]) -> None: ...
    def shard_of(self, tenant_id: int | None, address: str) -> int: ...


class Observe(Protocol):
    """Hears how many seconds a settlement took; `failed` says in a word why it is not made yet. It must not raise."""

    def __call__(self, seconds: float, *, failed: str = "") -> None: ...


def _unobserved(seconds: float, *, failed: str = "") -> None:
    pass


class Settling:
    """Settles now or later; keeps the leases of what is still being answered."""

    def __init__(self, counters: Counters, *, patience: float, observe: Observe = _unobserved) -> None:
        self._counters = counters
        self._patience = patience
        self._observe = observe
        self._later: deque[tuple[Grant, Settlement]] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._open: dict[int, tuple[Exchange, float]] = {}

    @property
    def waiting(self) -> int:
        return len(self._later)

    def opened(self, exchange: Exchange) -> None:
        self._open[id(exchange)] = (exchange, exchange.begun)

    def closed(self, exchange: Exchange) -> None:
        self._open.pop(id(exchange), None)

    async def settle(self, grant: Grant, settlement: Settlement) -> bool:
        """Settle while the client's last byte waits; False where the store needs longer than our patience."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    try:
                        await self._counters.settle(grant, settlement)
                    except StoreDown:
                        await asyncio.sleep(0.1)
                    else:
                        self._observe(time.monotonic() - begun)
                        return True
        except TimeoutError:
            self._observe(time.monotonic() - begun, failed="store_down")
            self.later(grant, settlement)
            return False
        except asyncio.CancelledError:
            self.later(
                grant, settlement
            )  # the client left while its settlement was on the way: it may or may not be in
            raise

    def later(self, grant: Grant, settlement: Settlement) -> None:
        """Settle without anybody waiting."""
        self._later.append((grant, settlement))
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """For ever: settle what waits and renew leases."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._settle_later())
            tasks.create_task(self._renew())

    async def drain(self) -> None:
        """Return when nothing waits any more."""
        await self._idle.wait()

    async def _settle_later(self) -> None:
        while True:
            self._wake.clear()
            while self._later:
                grant, settlement = self._later[0]
                begun = time.monotonic()
                try:
                    await self._counters.settle(grant, settlement)
                except StoreDown as fault:
                    log.warning("settlement waits", extra={"fault": str(fault), "waiting": len(self._later)})
                    await asyncio.sleep(0.5)
                else:
                    self._observe(time.monotonic() - begun)
                    self._later.popleft()
            self._idle.set()
            await self._wake.wait()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            shards: dict[int, list[tuple[str, int]]] = {}
            for exchange, begun in self._open.values():
                if time.monotonic() - begun >= RENEW_SECONDS:
                    shard = self._counters.shard_of(exchange.grant.tenant_id, "")
                    shards.setdefault(shard, []).append((exchange.grant.request_id, exchange.produced()))
            for shard, progress in shards.items():
                try:
                    await self._counters.renew(shard, progress)
                except StoreDown as fault:
                    # Leases outlive several missed renewals; a settlement finds its reservation or charges without it.
                    log.warning("leases not renewed", extra={"fault": str(fault)})
