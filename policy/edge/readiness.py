"""Readiness: can this process serve, each dependency named.

The probes run at the same time, each under its own time-out, and one outcome serves everybody who asks within half a
second: a flood of /readyz costs the dependencies two questions a second.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping

PROBE_TIMEOUT = 1.0  # seconds
GOOD_FOR = 0.5  # seconds

Probe = Callable[[], Awaitable[object]]
"""Asks one dependency; it raises, or answers False, when the dependency cannot be used."""

log = logging.getLogger(__name__)


class Readiness:
    """Asks the probes, by the names that the answer shows."""

    def __init__(self, probes: Mapping[str, Probe], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._probes = dict(probes)
        self._clock = clock
        self._asking = asyncio.Lock()
        self._asked_at = -GOOD_FOR
        self._checks: dict[str, bool] = {}
        self._draining = False

    def drain(self) -> None:
        """From now on say that this process is about to stop; it still answers whatever reaches it."""
        self._draining = True

    async def answer(self, but: Collection[str] = ()) -> tuple[int, bytes]:
        """Status and body of /readyz: 200 with everything well, `but` for these dependencies, else 503."""
        async with self._asking:
            if self._clock() - self._asked_at >= GOOD_FOR:
                await self._ask()
        checks = {name: well for name, well in self._checks.items() if name not in but}
        words = {name: "ok" if well else "unavailable" for name, well in checks.items()}
        well = all(checks.values())
        status = "draining" if self._draining else "ok" if well else "unavailable"
        body = {"status": status, "checks": words}
        return 200 if status == "ok" else 503, json.dumps(body, separators=(",", ":")).encode()

    async def _ask(self) -> None:
        async with asyncio.TaskGroup() as group:
            asked = {name: group.create_task(_well(probe)) for name, probe in self._probes.items()}
        checks = {name: task.result() for name, task in asked.items()}
        for name, well in checks.items():
            if self._checks.get(name, True) is not well:
                log.log(logging.INFO if well else logging.WARNING, "readiness", extra={"check": name, "well": well})
        self._checks = checks
        self._asked_at = self._clock()


async def _well(probe: Probe) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            return await probe() is not False
    except Exception:  # a probe reports by raising, whatever its library raises; what it was shows elsewhere
        return False
