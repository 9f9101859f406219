"""Seeds: what the ledger knows, for counters that the store has not, or has lost.

A store that lost its data asks for the seeds of every tenant at once, and of one tenant for every request that is
waiting: those share one look at the ledger.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from policy.rules.faults import StoreDown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from policy.rules.settlement import Known


class Seeds:
    """Reads through `read`, once for all who wait for the same."""

    def __init__(self, read: Callable[[int, int], Awaitable[Known]]) -> None:
        self._read = read
        self._reading: dict[tuple[int, int], asyncio.Future[Known]] = {}

    async def read(self, tenant_id: int, key_id: int) -> Known:
        """What `read` finds now, or raises."""
        who = tenant_id, key_id
        under_way = self._reading.get(who)
        if under_way is not None:
            return await asyncio.shield(under_way)
        found: asyncio.Future[Known] = asyncio.get_running_loop().create_future()
        found.add_done_callback(_look)
        self._reading[who] = found
        try:
            known = await self._read(tenant_id, key_id)
        except BaseException as error:
            # Who waits along with a request that was given up tries again by itself, as it would for a store.
            found.set_exception(error if isinstance(error, Exception) else StoreDown("the look-up was given up"))
            raise
        else:
            found.set_result(known)
            return known
        finally:
            del self._reading[who]


def _look(found: asyncio.Future[Known]) -> None:
    found.exception()  # nobody may have waited along: that is no mistake
