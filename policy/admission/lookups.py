"""Look-ups: one query at a time, each for everybody who waits for one.

A look-up by itself is cheap; five hundred at once, made up by a stranger, would queue for connections with the good
ones among them. Gathered while the query before is under way, they are one more query of a few milliseconds.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from policy.rules.tenants import Key

_LARGEST = 1000  # prefixes in one query


class Lookups:
    """Keys by prefix, through `load`; `run` must be running."""

    def __init__(self, load: Callable[[Collection[str]], Awaitable[Mapping[str, Key]]]) -> None:
        self._load = load
        self._wanted: dict[str, asyncio.Future[Key | None]] = {}
        self._any = asyncio.Event()

    async def find(self, prefix: str) -> Key | None:
        """The key, from a query sent after this call; raises what `load` raises. One caller at a time for a prefix."""
        wanted: asyncio.Future[Key | None] = asyncio.get_running_loop().create_future()
        self._wanted[prefix] = wanted
        self._any.set()
        return await wanted

    async def run(self) -> None:
        while True:
            await self._any.wait()
            batch = {prefix: self._wanted.pop(prefix) for prefix in list(islice(self._wanted, _LARGEST))}
            if not self._wanted:
                self._any.clear()
            try:
                outcome: Mapping[str, Key] | Exception = await self._load(batch.keys())
            except Exception as error:  # whatever it is, those who wait for it get it
                outcome = error
            for prefix, wanted in batch.items():
                if wanted.done():  # its caller was cancelled
                    continue
                if isinstance(outcome, Exception):
                    wanted.set_exception(outcome)
                else:
                    wanted.set_result(outcome.get(prefix))
