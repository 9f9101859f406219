"""The journal: takes down what Envoy's access log tells, and settles what its processor could not.

What Envoy metered by itself and could not hand to a processor is settled here, before its entry is written: an entry in
the ledger says that its request is settled. What a processor metered and did not say to have settled gets a short
grace; then what Envoy saw of it is the best that anybody knows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from policy.rules.faults import StoreDown
from policy.rules.grant import Grant
from policy.rules.metering import BYTES_PER_TOKEN, reading
from policy.rules.settlement import Settlement
from policy.rules.speeds import Speeds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policy.rules.events import Entry, Finished, Progress

log = logging.getLogger(__name__)

GRACE_SECONDS = 2.0  # how long after Envoy's log an unsettled request is left to its processor
LOOK_SECONDS = 0.25  # how often those past their grace are looked for
STORE_SECONDS = 0.2  # how often a store that is down is tried again
BYTES_PER_DELTA = 110  # of a streamed native chunk around its text, for the estimate of last resort


class Events(Protocol):
    """Where events are written, and reservations settled."""

    async def log(self, shard: int, entries: Iterable[Entry], *, again: bool = False) -> list[int]: ...
    async def settle(self, grant: Grant, settlement: Settlement) -> str: ...
    async def renew(self, tenant_shard: int, progress: Iterable[tuple[str, int]]) -> None: ...
    def shard_of(self, tenant_id: int | None, address: str) -> int: ...


class Journal:
    """Finished requests on their way into events."""

    def __init__(self, events: Events, speeds: Speeds | None = None) -> None:
        self._events = events
        self._speeds = speeds or Speeds()
        self._open: deque[tuple[float, Finished]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that are left to their processors for a moment."""
        return len(self._open)

    async def write(self, entries: Iterable[Finished], *, again: bool = False) -> list[Finished]:
        """Write entries as events, one store call per shard; waits for a store that is down, since no entry may be
        lost, and Envoy keeps what it has not yet sent. `again`: they are out of Envoy's file, in case the stream lost
        some. Returns those that were news."""
        news: list[Finished] = []
        shards: dict[int, list[Finished]] = {}
        for entry in entries:
            if entry.grant and entry.metered:
                await self._settle_metered(entry)
            elif entry.grant and not entry.settled:
                self._open.append((time.monotonic() + GRACE_SECONDS, entry))
            if not entry.counted:
                shard = self._events.shard_of(entry.tenant_id, entry.address)
                shards.setdefault(shard, []).append(entry)
        for shard, found in shards.items():
            asked = False
            while True:
                try:
                    places = await self._events.log(shard, [entry.entry for entry in found], again=again)
                    # A call whose answer was lost may have been heard: what it said is news, and no news now.
                    news += found if asked and not again else [found[place] for place in places]
                    break
                except StoreDown:
                    asked = True
                    await asyncio.sleep(STORE_SECONDS)
        return news

    async def renew(self, progress: Iterable[Progress]) -> None:
        """Keep the leases of answers that are still on their way. One missed renewal is none."""
        shards: dict[int, list[tuple[str, int]]] = {}
        for one in progress:
            shards.setdefault(self._events.shard_of(one.tenant_id, ""), []).append((one.request_id, one.deltas))
        for shard, found in shards.items():
            try:
                await self._events.renew(shard, found)
            except StoreDown as fault:
                log.warning("leases not renewed", extra={"fault": str(fault)})

    async def _settle_metered(self, entry: Finished) -> None:
        """Settle what Envoy metered, waiting for a store that is down."""
        grant = self._grant(entry)
        if grant is None or not grant.epoch:
            return
        settlement = self._metered(grant, entry)
        self._speeds.learn(grant.model, settlement.completion_tokens, _eval(settlement))
        while not entry.settled:
            try:
                await self._events.settle(grant, settlement)
                return
            except StoreDown:
                await asyncio.sleep(STORE_SECONDS)

    def _metered(self, grant: Grant, entry: Finished) -> Settlement:
        if entry.used:
            try:
                return reading(entry.used)
            except ValueError:
                log.warning("a reading that cannot be read", extra={"request_id": entry.request_id})
        if not entry.reached_upstream:
            return Settlement(0, 0, exact=True, event={"outcome": "not_forwarded"})
        facts: dict[str, object] = {"st": entry.status or None, "outcome": "aborted"}
        if entry.deltas is not None and (entry.deltas or grant.stream):
            return Settlement(None, min(entry.deltas, grant.cap), exact=False, event=facts)
        if entry.status >= 400:
            return Settlement(0, 0, exact=True, event={**facts, "outcome": "upstream_error"})
        # Broken off while the model worked and before anything of it was seen.
        unseen = self._speeds.produced(grant.model, entry.microseconds / 1e6, grant.cap)
        return Settlement(None, unseen, exact=False, event=facts)

    @staticmethod
    def _grant(entry: Finished) -> Grant | None:
        try:
            return Grant.from_json(entry.grant)
        except ValueError:
            # Of another version, while replicas are replaced: the sweeper settles it by what its reservation says.
            log.warning("a grant that cannot be read", extra={"request_id": entry.request_id})
            return None

    async def run(self) -> None:
        """For ever: settle what is past its grace."""
        while True:
            while self._open and self._open[0][0] <= time.monotonic():
                _, entry = self._open.popleft()
                try:
                    await self._settle(entry)
                except StoreDown:
                    # Its processor has waited for the store too, and knows better than we do: it goes first again.
                    self._open.appendleft((time.monotonic() + GRACE_SECONDS, entry))
            await asyncio.sleep(LOOK_SECONDS)

    async def _settle(self, entry: Finished) -> None:
        grant = self._grant(entry)
        if grant is None or not grant.epoch:
            return  # nothing was reserved
        if not entry.reached_upstream:
            settlement = Settlement(0, 0, exact=True, event={"outcome": "not_forwarded"})
        else:
            per_token = BYTES_PER_DELTA if grant.stream else BYTES_PER_TOKEN
            tokens = min(entry.response_bytes // per_token, grant.cap)
            settlement = Settlement(None, tokens, exact=False, event={"outcome": "lost"})
        await self._events.settle(grant, settlement)


def _eval(settlement: Settlement) -> int:
    found = settlement.event.get("eval", 0)
    return found if isinstance(found, int) else 0
