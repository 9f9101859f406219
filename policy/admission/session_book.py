"""The book of sessions: what every tenant allows and what was taken back, always as it is now.

The whole directory is loaded at once and swapped as one value: it grows with tenants that allow sessions, and a request
reads it without waiting. Changes arrive as notices on a watched connection; besides, it is loaded anew every REFRESH
seconds, so that a notice that got lost is made up for. While there is no connection, or the last load is older than
TTL, nothing may be believed of any session (fail closed).

Signing keys are replaced here too, when they are old: whichever process looks first makes the new one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Protocol

from policy.rules.faults import DatabaseDown
from policy.rules.session_token import SALT_BYTES, base64url

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from policy.rules.sessions import Directory

TTL = 30.0  # seconds that a directory may be believed
REFRESH = 10.0
SETTLED = 2 * REFRESH  # seconds after which a new signing key is known everywhere, notices or not
_GATHER = 0.05  # changes within that long are one load
_RECONNECT = 0.25
_ROTATE_EVERY = 600.0  # seconds between two looks at the age of the signing key

_log = logging.getLogger(__name__)


class Watch(Protocol):
    """Hears of changes."""

    async def notice(self) -> str: ...


class Store(Protocol):
    """Where sessions are written about. Each raises DatabaseDown when it cannot be reached."""

    async def load(self, now: float, settled: float) -> Directory: ...
    async def rotate(self, kid: str, salt: bytes, older_than: float) -> bool: ...
    def watch(self) -> AbstractAsyncContextManager[Watch]: ...


class SessionBook:
    """`run` must be running. `rotate_after`: the age in seconds at which a signing key is replaced; None: never."""

    def __init__(
        self, store: Store, *, rotate_after: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._rotate_after = rotate_after
        self._clock = clock
        self._directory: Directory | None = None
        self._loaded_at = 0.0
        self._changed = asyncio.Event()
        self._up = asyncio.Event()

    async def wait_up(self) -> None:
        await self._up.wait()

    def current(self) -> Directory:
        """DatabaseDown when it is not known."""
        if self._directory is None or self._clock() - self._loaded_at > TTL:
            raise DatabaseDown("what sessions may do is not known")
        return self._directory

    @property
    def on(self) -> bool:
        """Whether there are browser sessions, as far as is known."""
        return self._directory is not None and self._directory.on

    async def run(self) -> None:
        """Follow the store until cancelled."""
        lost = False  # said once for each outage
        while True:
            try:
                async with self._store.watch() as watch, asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._listen(watch))
                    tasks.create_task(self._rotate())
                    while True:
                        self._changed.clear()
                        await self._load()
                        lost = False
                        await self._pause()
            except* DatabaseDown as group:
                if not lost:
                    lost = True
                    _log.error("no session is believed until the database can be reached: %s", group.exceptions[0])
            finally:
                self._directory = None
                self._up.clear()
            await asyncio.sleep(_RECONNECT)

    async def _load(self) -> None:
        at = self._clock()
        directory = await self._store.load(time.time(), SETTLED)
        if not self.on and directory.on:
            _log.info("browser sessions are on", extra={"tenants": len(directory.policies)})
        self._directory, self._loaded_at = directory, at
        self._up.set()

    async def _pause(self) -> None:
        """Until something changed, or REFRESH is over."""
        try:
            async with asyncio.timeout(REFRESH):
                await self._changed.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_GATHER)

    async def _listen(self, watch: Watch) -> None:
        while True:
            what, _, which = (await watch.notice()).partition(":")
            if what == "key":
                continue
            if what == "tenant" and self._directory is not None and int(which) not in self._directory.policies:
                continue
            self._changed.set()

    async def _rotate(self) -> None:
        while self._rotate_after is not None:
            kid, salt = base64url(os.urandom(6)), os.urandom(SALT_BYTES)
            if await self._store.rotate(kid, salt, self._rotate_after):
                _log.info("a new session key signs from now on", extra={"kid": kid})
            await asyncio.sleep(_ROTATE_EVERY)
