"""Stamps: when each key was last used, written off the hot path, in batches, at most once a minute for each key."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from policy.rules.faults import DatabaseDown

if TYPE_CHECKING:
    from collections.abc import Mapping

_EVERY = 5.0  # seconds between two writes
_AGAIN = timedelta(minutes=1)  # how old a key's stamp may become before another is written


class StampStore(Protocol):
    async def stamp(self, used: Mapping[int, datetime]) -> None:
        """Record last uses by key id. DatabaseDown when that is not possible now."""


class Stamps:
    def __init__(self, store: StampStore, *, every: float = _EVERY) -> None:
        self._store = store
        self._every = every
        self._fresh: dict[int, datetime] = {}  # by key id; written, or about to be, less than a minute ago
        self._unwritten: dict[int, datetime] = {}

    def used(self, key_id: int, now: datetime) -> None:
        at = self._fresh.get(key_id)
        if at is None or now - at >= _AGAIN:
            self._fresh[key_id] = self._unwritten[key_id] = now

    async def run(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._every)
                await self._write()
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._write()

    async def _write(self) -> None:
        now = datetime.now(UTC)
        self._fresh = {key_id: at for key_id, at in self._fresh.items() if now - at < _AGAIN}
        batch, self._unwritten = self._unwritten, {}
        if not batch:
            return
        try:
            await self._store.stamp(batch)
        except DatabaseDown:
            self._unwritten = batch | self._unwritten  # again next time
