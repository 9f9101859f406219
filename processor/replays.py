"""Each envelope once: what names it is claimed while it is being answered, and stays claimed when it was.

Two names. The client's payload id, together with its API key, as the protocol has it: the same id may come again when
an attempt failed, and only then. And the package itself, by its wrapped key, whoever sends it: the payload id is not
under the seal, so a package that somebody recorded could come back under another id, with a public key of theirs.

A claim under way has a short lease that is held up while its processor lives, so a crash frees it within seconds. Who
finds it held waits that long: either the other attempt ends, or its processor has died.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Protocol

from policy.rules.faults import StoreDown

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger(__name__)

LEASE_MS = 5_000
HOLD_SECONDS = 1.5  # three times within a lease
LOOK_SECONDS = 0.2
PATIENCE_SECONDS = LEASE_MS / 1000 + 1  # below Envoy's message_timeout of 10 s


class ClaimStore(Protocol):
    """Where claims stand: see `policy.stores.redis.RedisStore.claim`."""

    async def claim(self, what: str, name: str, owner: str, milliseconds: int) -> str: ...


def of_payload_id(key_id: int, payload_id: str) -> str:
    """The name of a claim on a payload id of one API key."""
    return _name(b"id", b"%d %s" % (key_id, payload_id.encode("ascii")))


def of_package(wrapped_key: bytes) -> str:
    """The name of a claim on a package. Its wrapped key stands for it: nobody who lacks the key inside can write it in
    another way, and OpenSSL takes only one number for it."""
    return _name(b"package", wrapped_key)


def _name(kind: bytes, what: bytes) -> str:
    return hashlib.blake2b(what, digest_size=16, person=kind).hexdigest()


class Replays:
    """The claims of this process. `owner` names one attempt; `run` must be running."""

    def __init__(self, store: ClaimStore, *, window_seconds: int) -> None:
        self._store = store
        self._window_ms = window_seconds * 1000
        self._held: dict[str, str] = {}
        self._work: deque[tuple[str, str, str]] = deque()
        self._wake = asyncio.Event()

    async def take(self, name: str, owner: str) -> bool:
        """Claim `name`; False where it was answered before, or is being answered. StoreDown: that is not known."""
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while True:
            found = await self._store.claim("take", name, owner, LEASE_MS)
            if found == "ok":
                self._held[name] = owner
                return True
            if found == "done" or asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(LOOK_SECONDS)

    async def finish(self, names: Iterable[str], owner: str) -> None:
        """It is answered: for the length of the window it will not be again. A store that is down hears of it later."""
        await self._now("finish", names, owner)

    async def drop(self, names: Iterable[str], owner: str) -> None:
        """The attempt failed, and may be made again at once."""
        await self._now("drop", names, owner)

    def drop_later(self, names: Iterable[str], owner: str) -> None:
        """The same from where nothing can be waited for."""
        for name in names:
            self._later("drop", name, owner)

    async def run(self) -> None:
        """For ever: hold what is under way, and do what could not be done at once."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hold())
            tasks.create_task(self._catch_up())

    async def _now(self, what: str, names: Iterable[str], owner: str) -> None:
        for name in names:
            try:
                await self._tell(what, name, owner)
            except StoreDown:
                self._later(what, name, owner)
            except asyncio.CancelledError:
                self._later(what, name, owner)  # it may or may not have arrived, and may arrive twice
                raise

    def _later(self, what: str, name: str, owner: str) -> None:
        self._work.append((what, name, owner))
        self._wake.set()

    async def _tell(self, what: str, name: str, owner: str) -> None:
        self._held.pop(name, None)  # first, or it might be held again after it was dropped
        await self._store.claim(what, name, owner, self._window_ms)

    async def _hold(self) -> None:
        while True:
            await asyncio.sleep(HOLD_SECONDS)
            try:
                for name, owner in list(self._held.items()):
                    if self._held.get(name) == owner:
                        await self._store.claim("hold", name, owner, LEASE_MS)
            except StoreDown as fault:
                log.warning("claims not held", extra={"fault": str(fault)})

    async def _catch_up(self) -> None:
        while True:
            self._wake.clear()
            while self._work:
                what, name, owner = self._work[0]
                try:
                    await self._tell(what, name, owner)
                except StoreDown:
                    await asyncio.sleep(0.5)
                else:
                    self._work.popleft()
            await self._wake.wait()
