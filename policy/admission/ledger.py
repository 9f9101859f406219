"""The ledger writer and the sweeper: events into rows, forgotten reservations into settlements.

Decisions and settlements are written first as events, in the same atomic step as the counters; from there they are
carried to PostgreSQL here, in batches, off every request's path. One process of all leads at a time (an advisory lock
that dies with its connection); the events of a batch are dropped from the store after the commit, and applying a batch
twice changes nothing, so a kill -9 anywhere in between loses and doubles nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from policy.rules.events import batch
from policy.rules.faults import DatabaseDown, StoreDown
from policy.rules.grant import Grant
from policy.rules.settlement import Settlement

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from policy.rules.events import Batch, Finished
    from policy.rules.settlement import Expired, Identity, Seed

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
BATCH = 1000  # events of one shard in one transaction
SWEEP_SECONDS = 1.0
HOUSEKEEPING_SECONDS = 20.0
GRACE_SECONDS = 2.0  # how long after Envoy's log an unsettled request is left to its processor
BYTES_PER_DELTA = 110  # of a streamed native chunk around its text, for the estimate of last resort


class Events(Protocol):
    """Where the events wait, and the reservations stand."""

    async def backlog(self) -> list[int]: ...
    async def events(self, shard: int, most: int) -> list[tuple[bytes, dict[bytes, bytes]]]: ...
    async def forget(self, shard: int, last: bytes) -> None: ...
    async def log(self, shard: int, entries: Iterable[tuple[str, bool, str]]) -> int: ...
    async def refusals(self, shard: int) -> dict[str, int]: ...
    async def forget_refusals(self, shard: int, fields: Sequence[str]) -> None: ...
    async def expired(self, shard: int, most: int = 100) -> list[Expired]: ...
    async def settle(self, grant: Grant, settlement: Settlement) -> str: ...
    async def settle_as(self, request_id: str, identity: Identity, settlement: Settlement) -> str: ...
    def shard_of(self, tenant_id: int | None, address: str) -> int: ...


class Rows(Protocol):
    """The ledger's tables."""

    async def lead(self) -> bool: ...
    async def apply(self, batch: Batch) -> None: ...
    async def count_refusals(self, rows: Iterable[tuple[int, str, int]]) -> None: ...
    async def arrange(self, now: datetime, retention_days: int) -> None: ...


class Observer(Protocol):
    """Is told what was done. Its methods must not raise."""

    def ledger_carried(self, kind: str, events: int) -> None: ...
    def reservations_swept(self, count: int) -> None: ...


class _Unobserved:
    def ledger_carried(self, kind: str, events: int) -> None:
        pass

    def reservations_swept(self, count: int) -> None:
        pass


class Ledger:
    """Carries events to rows while it leads. `kept` refusals of an address and minute have rows of their own."""

    def __init__(
        self, events: Events, rows: Rows, *, retention_days: int, kept: int, observer: Observer | None = None
    ) -> None:
        self._events = events
        self._rows = rows
        self._retention_days = retention_days
        self._kept = kept
        self._observer = observer or _Unobserved()
        self.leading = False
        self.waits = False  # for a store that is down: then perhaps nobody leads

    async def run(self) -> None:
        """For ever: lead if nobody does, carry what waits, sweep, keep house. A store that is down is waited for."""
        swept = kept_house = 0.0
        while True:
            try:
                self.leading = await self._rows.lead()
                self.waits = False
                if not self.leading:
                    await asyncio.sleep(1.0)
                    continue
                now = time.monotonic()
                if now - kept_house > HOUSEKEEPING_SECONDS:
                    await self._rows.arrange(datetime.now(UTC), self._retention_days)
                    await self._count_refusals()
                    kept_house = now
                if now - swept > SWEEP_SECONDS:
                    await self._sweep()
                    swept = now
                if not await self.carry():
                    await asyncio.sleep(POLL_SECONDS)
            except (StoreDown, DatabaseDown) as fault:
                self.leading, self.waits = False, True
                log.warning("ledger waits", extra={"fault": f"{type(fault).__name__}: {fault}"})
                await asyncio.sleep(0.5)

    async def carry(self) -> bool:
        """Carry one batch of each shard that has any; say whether more may wait."""
        backlog = await self._events.backlog()
        more = False
        for shard, waiting in enumerate(backlog):
            if not waiting:
                continue
            found = await self._events.events(shard, BATCH)
            if not found:
                continue
            carried = batch(fields for _, fields in found)
            await self._rows.apply(carried)
            await self._events.forget(shard, found[-1][0])
            self._observer.ledger_carried("admission", len(carried.admissions))
            self._observer.ledger_carried("log", len(carried.logs))
            self._observer.ledger_carried("settlement", len(carried.settlements))
            more = more or len(found) == BATCH
        return more

    async def _sweep(self) -> None:
        """Settle what nobody will settle any more, at what is known of it: that is what `estimated` says."""
        for shard in range(len(await self._events.backlog())):
            for forgotten in await self._events.expired(shard):
                settlement = Settlement(None, forgotten.completion_tokens, exact=False, event={"outcome": "lost"})
                await self._events.settle_as(forgotten.request_id, forgotten.identity, settlement)
                self._observer.reservations_swept(1)

    async def _count_refusals(self) -> None:
        this_minute = int(time.time() // 60)
        for shard in range(len(await self._events.backlog())):
            past: list[tuple[int, str, int]] = []
            done: list[str] = []
            for name, count in (await self._events.refusals(shard)).items():
                minute, _, address = name.partition("|")
                if int(minute) >= this_minute:
                    continue
                done.append(name)
                if count > self._kept:
                    past.append((int(minute), address, count - self._kept))
            if past:
                await self._rows.count_refusals(past)
            if done:
                await self._events.forget_refusals(shard, done)


class Journal:
    """Takes down what Envoy's access log tells, and settles what its processor could not.

    A request whose exchange is over and whose processor did not say that it settled gets a short grace; then what
    Envoy saw of it is the best that anybody knows.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._open: deque[tuple[float, Finished]] = deque()

    async def write(self, entries: Iterable[Finished]) -> None:
        """Write entries as events, one store call per shard; waits for a store that is down, since no entry may be
        lost, and Envoy keeps what it has not yet sent."""
        shards: dict[int, list[tuple[str, bool, str]]] = {}
        for entry in entries:
            if entry.grant and not entry.settled:
                self._open.append((time.monotonic() + GRACE_SECONDS, entry))
            if not entry.counted:
                shard = self._events.shard_of(entry.tenant_id, entry.address)
                shards.setdefault(shard, []).append((entry.address, entry.refused and not entry.recorded, entry.event))
        for shard, found in shards.items():
            while True:
                try:
                    await self._events.log(shard, found)
                    break
                except StoreDown:
                    await asyncio.sleep(0.2)

    async def run(self) -> None:
        """For ever: settle what is past its grace."""
        while True:
            while self._open and self._open[0][0] <= time.monotonic():
                _, entry = self._open[0]
                try:
                    await self._settle(entry)
                except StoreDown:
                    break
                self._open.popleft()
            await asyncio.sleep(0.25)

    async def _settle(self, entry: Finished) -> None:
        grant = Grant.from_json(entry.grant)
        if not grant.epoch:
            return  # nothing was reserved
        if not entry.reached_upstream:
            settlement = Settlement(0, 0, exact=True, event={"outcome": "not_forwarded"})
        else:
            per_token = BYTES_PER_DELTA if grant.stream else 5
            tokens = min(entry.response_bytes // per_token, grant.cap)
            settlement = Settlement(None, tokens, exact=False, event={"outcome": "lost"})
        await self._events.settle(grant, settlement)


class DrainedSeeds:
    """Seeds for counters that the store lost: read only when what waits in its stream is in the ledger too."""

    def __init__(self, events: Backlog, read: Seeding, patience: float = 3.0) -> None:
        self._events = events
        self._read = read
        self._patience = patience

    async def read(self, tenant_id: int, key_id: int) -> tuple[Seed, Seed]:
        """StoreDown when the ledger does not catch up in time: no budget is believed from half a sum."""
        newest = await self._events.newest(tenant_id)
        deadline = time.monotonic() + self._patience
        while newest is not None and not await self._events.carried(tenant_id, newest):
            if time.monotonic() > deadline:
                raise StoreDown("the ledger is behind: a budget cannot be rebuilt yet")
            await asyncio.sleep(0.02)
        return await self._read(tenant_id, key_id)


class Backlog(Protocol):
    """How far the stream of a tenant's shard has been carried."""

    async def newest(self, tenant_id: int) -> bytes | None: ...
    async def carried(self, tenant_id: int, event: bytes) -> bool: ...


class Seeding(Protocol):
    """Reads seeds from the ledger."""

    async def __call__(self, tenant_id: int, key_id: int) -> tuple[Seed, Seed]: ...
