"""What the access log's stream lost, found again in Envoy's own file.

The stream has no acknowledgement: entries that policy had taken and not yet written die with it, and while no policy
runs Envoy's are dropped. Where the file is at hand (PADDOCK_ACCESS_LOG_FILE, which `paddock up` sets), the process that
leads the ledger reads it a few seconds behind, and writes what no row tells yet. Reading it again changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Protocol

from policy.rules.access_line import glance, parse
from policy.rules.addresses import neighbourhood
from policy.rules.faults import DatabaseDown, StoreDown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from policy.rules.events import Finished

log = logging.getLogger(__name__)

BEHIND_SECONDS = 4.0  # the stream has had its time by then
EVERY_SECONDS = 1.0


class Source(Protocol):
    """The file: lines after a mark, each with the mark after it."""

    def lines(self, mark: str) -> list[tuple[bytes, str]]: ...


class Marks(Protocol):
    """Remembers how far a source was read."""

    async def mark(self) -> str: ...
    async def set_mark(self, mark: str) -> None: ...


class Told(Protocol):
    """Which requests the ledger knows the end of, and which addresses were counted in a minute."""

    async def told(self, request_ids: Collection[str]) -> set[str]: ...
    async def counted(self, minutes: Collection[tuple[int, str]]) -> set[tuple[int, str]]: ...


class Writer(Protocol):
    """Takes down finished requests."""

    async def write(self, entries: Iterable[Finished], *, again: bool = False) -> list[Finished]: ...


class Observer(Protocol):
    """Is told of each refusal that Envoy made by itself and its stream did not tell of. It must not raise."""

    def refused_at_edge(self, reason: str) -> None: ...


class Recovery:
    """Reads behind the stream while `leads` says that this process writes the ledger."""

    def __init__(
        self, source: Source, marks: Marks, told: Told, writer: Writer, leads: Callable[[], bool], observer: Observer
    ) -> None:
        self._source = source
        self._marks = marks
        self._told = told
        self._writer = writer
        self._leads = leads
        self._observer = observer

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                more = self._leads() and await self.once()
            except (StoreDown, DatabaseDown) as fault:
                more = False
                log.warning("access log not read", extra={"fault": f"{type(fault).__name__}: {fault}"})
            if not more:
                await asyncio.sleep(EVERY_SECONDS)

    async def once(self) -> bool:
        """Read one piece; say whether another may follow."""
        mark = await self._marks.mark()
        reached = mark
        ripe: list[tuple[str, bytes]] = []
        until = (time.time() - BEHIND_SECONDS) * 1e6
        lines = await asyncio.to_thread(self._source.lines, mark)
        for line, after in lines:
            seen = glance(line)
            if seen is not None:
                name, started_at = seen
                if until < started_at < until + 3600e6:
                    break  # a clock that jumped must not hold us up for ever
                ripe.append((name, line))
            reached = after
        if ripe:
            # Nearly all are told already: only what is not is read in full.
            told = await self._told.told([name for name, _ in ripe])
            entries = [entry for name, line in ripe if name not in told and (entry := parse(line)) is not None]
            if entries:
                await self._write(entries)
        if reached != mark:
            await self._marks.set_mark(reached)
        return reached != mark

    async def _write(self, entries: list[Finished]) -> None:
        told = await self._told.told([entry.request_id for entry in entries])
        missing = [entry for entry in entries if entry.request_id not in told]
        if not missing:
            return
        counted = await self._told.counted({_counted_in(entry) for entry in missing if entry.refused})
        missing = [entry for entry in missing if not (entry.refused and _counted_in(entry) in counted)]
        news = await self._writer.write(missing, again=True)
        if news:
            log.info("recovered", extra={"requests": len(news)})
        for entry in news:
            if entry.edge_reason:
                self._observer.refused_at_edge(entry.edge_reason)


def _counted_in(entry: Finished) -> tuple[int, str]:
    """The minute and the address that a refusal counts for."""
    return entry.started_at // 60_000_000, neighbourhood(entry.address)
