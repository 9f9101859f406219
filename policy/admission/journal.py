"""The journal: takes down what Envoy's access log tells, and settles what its processor could not.

A request whose exchange is over and whose processor did not say that it settled gets a short grace; then what Envoy saw
of it is the best that anybody knows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from policy.rules.faults import StoreDown
from policy.rules.grant import Grant
from policy.rules.settlement import Settlement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policy.rules.events import Finished

log = logging.getLogger(__name__)

GRACE_SECONDS = 2.0  # how long after Envoy's log an unsettled request is left to its processor
LOOK_SECONDS = 0.25  # how often those past their grace are looked for
STORE_SECONDS = 0.2  # how often a store that is down is tried again
BYTES_PER_DELTA = 110  # of a streamed native chunk around its text, for the estimate of last resort
BYTES_PER_TOKEN = 5  # of an answer that came whole


class Events(Protocol):
    """Where events are written, and reservations settled."""

    async def log(self, shard: int, entries: Iterable[tuple[str, bool, str]]) -> int: ...
    async def settle(self, grant: Grant, settlement: Settlement) -> str: ...
    def shard_of(self, tenant_id: int | None, address: str) -> int: ...


class Journal:
    """Finished requests on their way into events."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._open: deque[tuple[float, Finished]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that are left to their processors for a moment."""
        return len(self._open)

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
                    await asyncio.sleep(STORE_SECONDS)

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
        try:
            grant = Grant.from_json(entry.grant)
        except ValueError:
            # Of another version, while replicas are replaced: the sweeper settles it by what its reservation says.
            log.warning("a grant that cannot be read", extra={"request_id": entry.request_id})
            return
        if not grant.epoch:
            return  # nothing was reserved
        if not entry.reached_upstream:
            settlement = Settlement(0, 0, exact=True, event={"outcome": "not_forwarded"})
        else:
            per_token = BYTES_PER_DELTA if grant.stream else BYTES_PER_TOKEN
            tokens = min(entry.response_bytes // per_token, grant.cap)
            settlement = Settlement(None, tokens, exact=False, event={"outcome": "lost"})
        await self._events.settle(grant, settlement)
