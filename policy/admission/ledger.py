"""The ledger writer and the sweeper: events into rows, forgotten reservations into settlements.

Decisions and settlements are written first as events, in the same atomic step as the counters; from there they are
carried to PostgreSQL here, in batches, off every request's path. One process of all leads at a time (an advisory lock
that dies with its connection); events are dropped from the store after the commit, and writing them twice changes
nothing, so a kill -9 anywhere in between loses and doubles nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from policy.rules.events import read
from policy.rules.faults import DatabaseDown, StoreDown
from policy.rules.settlement import Settlement
from policy.rules.speeds import Speeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from policy.rules.events import Applied, Charge, Event, Waiting
    from policy.rules.settlement import Expired, Identity

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
BATCH = 1000  # events in one transaction
AT_ONCE = 16  # events read before requests have their turn: all of a batch would hold them up for milliseconds
SWEEP_SECONDS = 1.0
RENEWED_SECONDS = 6.0  # in which Envoy's log stream comes back and its file is read; see `policy.admission.recovery`
UNSEEN_SECONDS = (
    0.5  # half of what passes between two signs of life of an answer (envoy.yaml: access_log_flush_interval)
)
HOUSEKEEPING_SECONDS = 20.0
FAULT_SECONDS = 5.0  # how long the books rest after a fault that nobody foresaw


class Events(Protocol):
    """Where the events wait, and the reservations stand."""

    async def backlog(self) -> list[int]: ...
    async def events(self, shard: int, most: int) -> Waiting: ...
    async def forget(self, carried: Waiting) -> None: ...
    async def refusals(self, shard: int) -> dict[str, int]: ...
    async def forget_refusals(self, shard: int, fields: Sequence[str]) -> None: ...
    async def overdue(self) -> list[int]: ...
    async def expired(self, shard: int, most: int = 100) -> list[Expired]: ...
    async def settle_as(self, request_id: str, identity: Identity, settlement: Settlement) -> str: ...


class Rows(Protocol):
    """The ledger's tables. `apply`, `quarantine` and `advance` belong into a `writing` block."""

    async def lead(self) -> bool: ...
    def writing(self) -> AbstractAsyncContextManager[None]: ...
    async def apply(self, events: Sequence[Event]) -> Applied: ...
    async def quarantine(self, waiting: Waiting, index: int, reason: str) -> None: ...
    async def advance(self, carried: Iterable[Waiting]) -> None: ...
    async def count_refusals(self, rows: Iterable[tuple[int, str, bool, int]]) -> None: ...
    async def never_forwarded(self, requests: Sequence[tuple[str, int]]) -> frozenset[str]: ...
    async def arrange(self, now: datetime, retention_days: int) -> None: ...


class Observer(Protocol):
    """Is told what was done. Its methods must not raise."""

    def ledger_carried(self, kind: str, events: int) -> None: ...
    def charged(self, charge: Charge) -> None: ...
    def reservations_swept(self, count: int) -> None: ...


class _Unobserved:
    def ledger_carried(self, kind: str, events: int) -> None:
        pass

    def charged(self, charge: Charge) -> None:
        pass

    def reservations_swept(self, count: int) -> None:
        pass


class Ledger:
    """Carries events to rows while it leads."""

    def __init__(
        self, events: Events, rows: Rows, *, retention_days: int, observer: Observer | None = None,
        speeds: Speeds | None = None,
    ) -> None:  # fmt: skip
        self._events = events
        self._rows = rows
        self._retention_days = retention_days
        self._observer = observer or _Unobserved()
        self._speeds = speeds or Speeds()
        self._kept_house = 0.0
        self._swept = time.monotonic() + RENEWED_SECONDS  # what ran on while no policy did may renew its lease first
        self.leading = False
        self.waits = False  # for a store that is down: then perhaps nobody leads

    async def run(self) -> None:
        """For ever. A store that is down is waited for."""
        while True:
            try:
                pause = await self._turn()
            except (StoreDown, DatabaseDown) as fault:
                self.leading, self.waits = False, True
                log.warning("ledger waits", extra={"fault": f"{type(fault).__name__}: {fault}"})
                pause = 0.5
            except Exception as fault:  # the last net: books that stand still must not take admissions down with them
                self.leading = False
                frames = reversed(traceback.extract_tb(fault.__traceback__)[-3:])
                place = " < ".join(f"{frame.name}:{frame.lineno}" for frame in frames)
                log.error("ledger failed", extra={"fault": type(fault).__name__, "at": place})
                pause = FAULT_SECONDS
            await asyncio.sleep(pause)

    async def _turn(self) -> float:
        """Lead if nobody does, keep house, sweep, carry what waits; how long to rest then."""
        self.leading = await self._rows.lead()
        self.waits = False
        if not self.leading:
            return 1.0
        now = time.monotonic()
        if now - self._kept_house > HOUSEKEEPING_SECONDS:
            await self._rows.arrange(datetime.now(UTC), self._retention_days)
            await self.count_refusals()
            self._kept_house = now
        if now - self._swept > SWEEP_SECONDS:
            await self.sweep()
            self._swept = now
        return 0.0 if await self.carry() else POLL_SECONDS

    async def carry(self) -> bool:
        """Carry what waits, up to a batch of all shards together; say whether more does."""
        backlog = await self._events.backlog()
        if not any(backlog):
            return False
        async with self._rows.writing():
            carried, more = await self._oldest(backlog)
            charges = await self._write(carried)
            await self._rows.advance(carried)
        for charge in charges:
            self._observer.charged(charge)
        for waiting in carried:
            await self._events.forget(waiting)
        return more

    async def _oldest(self, backlog: list[int]) -> tuple[list[Waiting], bool]:
        """What fits into a batch, each shard in its order; the longest queue first, so that none waits for ever."""
        found: list[Waiting] = []
        room = BATCH
        for shard in sorted(range(len(backlog)), key=lambda shard: -backlog[shard]):
            if not backlog[shard]:
                break
            if room <= 0:
                return found, True
            waiting = await self._events.events(shard, room)
            if waiting.entries:
                found.append(waiting)
                room -= len(waiting.entries)
        return found, room <= 0

    async def _write(self, carried: list[Waiting]) -> list[Charge]:
        """Into rows, or into quarantine: an event that nothing can be done with must not hold up all others. What it
        charges is returned."""
        events: list[Event] = []
        places: dict[int, tuple[Waiting, int]] = {}
        for waiting in carried:
            for index, (_, fields) in enumerate(waiting.entries):
                if index % AT_ONCE == 0:
                    await asyncio.sleep(0)
                try:
                    event = read(fields)
                except ValueError as error:
                    await self._set_aside(waiting, index, str(error))
                else:
                    places[id(event)] = waiting, index
                    events.append(event)
        charges: list[Charge] = []
        if events:
            charges, refused = await self._rows.apply(events)
            for event, reason in refused:
                await self._set_aside(*places[id(event)], reason)
        for kind in ("admission", "log", "settlement"):
            self._observer.ledger_carried(kind, sum(event.kind == kind for event in events))
        return charges

    async def _set_aside(self, waiting: Waiting, index: int, reason: str) -> None:
        log.error("event set aside", extra={"shard": waiting.shard, "event": waiting.entries[index][0].decode()})
        await self._rows.quarantine(waiting, index, reason)
        self._observer.ledger_carried("quarantined", 1)

    async def sweep(self) -> None:
        """Settle what nobody will settle any more, at what is known of it: that is what `estimated` says. What never
        went on to an upstream (its client left while policy decided, say) costs nothing."""
        for shard in await self._events.overdue():
            forgotten = await self._events.expired(shard)
            if not forgotten:
                continue
            unsent = await self._rows.never_forwarded([(one.request_id, one.identity.started_at) for one in forgotten])
            for one in forgotten:
                if one.request_id in unsent:
                    settlement = Settlement(0, 0, exact=True, event={"outcome": "not_forwarded"})
                else:
                    settlement = Settlement(None, self._produced(one), exact=False, event={"outcome": "lost"})
                if await self._events.settle_as(one.request_id, one.identity, settlement) == "settled":
                    self._observer.reservations_swept(1)

    def _produced(self, one: Expired) -> int:
        """What an answer had come to when its Envoy died: what was seen last, and what the model makes in half of the
        time to a next sign; where nothing was seen, what it makes in all the time that there were signs."""
        seen = one.completion_tokens
        seconds = UNSEEN_SECONDS if seen else max(one.seen_at - one.identity.started_at, 0) / 1e6
        return seen + self._speeds.produced(one.identity.model, seconds, max(one.cap - seen, 0))

    async def count_refusals(self) -> None:
        """Write one row for each address and minute that had more refusals than have rows of their own, and one where
        it had more answers for anybody.

        An address may have them in several shards. They are added up before any is forgotten: who does this again
        finds the same or less, and a row never falls.
        """
        shards = [await self._events.refusals(shard) for shard in range(len(await self._events.backlog()))]
        past: Counter[str] = Counter()
        for over in shards:
            past.update(over)
        if past:
            await self._rows.count_refusals([(*_minute_and_address(name), count) for name, count in past.items()])
        for shard, over in enumerate(shards):
            if over:
                await self._events.forget_refusals(shard, list(over))


def _minute_and_address(name: str) -> tuple[int, str, bool]:
    minute, address, *open_ = name.split("|")
    return int(minute), address, bool(open_)
