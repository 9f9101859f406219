"""A running keyring over a real PostgreSQL, for tests: what it looked up and verified, and keys to ask it about."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from policy.admission.hashing import Hashing
from policy.admission.keyring import TTL, Keyring
from policy.rules import keys
from policy.rules.decision import Deny, Reason
from policy.rules.tenants import Key, Tenant
from policy.stores.postgres import Postgres
from policy.stores.registry import Registries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping

    from policy.admission.turns import Path
    from policy.rules.keys import ApiKey

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HERE = "192.0.2.1"
DRAFT = Key(id=0, prefix="", hash="", tenant=Tenant(id=0, name="acme"))


class CountedHashing(Hashing):
    """Notes in which order verifications were asked for and answered."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.answered: list[bool] = []

    async def verify(self, hash: str, secret: bytes, lane: str, path: Path) -> bool:
        self.asked += 1
        matches = await super().verify(hash, secret, lane, path)
        self.answered.append(matches)
        return matches


class CountedPostgres(Postgres):
    """Notes what was looked up; `gate` holds answers back."""

    loads = 0
    gate: asyncio.Event | None = None

    async def load(self, prefixes: Collection[str]) -> Mapping[str, Key]:
        self.loads += len(prefixes)
        found = await super().load(prefixes)
        if self.gate is not None:
            await self.gate.wait()
        return found


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Ring:
    """A running keyring and what it stands on."""

    keyring: Keyring
    hashing: CountedHashing
    postgres: CountedPostgres
    clock: Clock = field(default_factory=Clock)

    async def ask(self, key: ApiKey | str | None, now: datetime = NOW, address: str = HERE) -> Key | Deny:
        presented = key.reveal() if isinstance(key, keys.ApiKey) else key
        return await self.keyring.authenticate(presented, address, now)

    async def refused(self, key: ApiKey | str | None, now: datetime = NOW) -> Reason:
        outcome = await self.ask(key, now)
        assert isinstance(outcome, Deny)
        return outcome.reason

    async def admitted(self, key: ApiKey, now: datetime = NOW) -> Key:
        outcome = await self.ask(key, now)
        assert isinstance(outcome, Key), outcome
        return outcome

    @property
    def work(self) -> tuple[int, int]:
        """Look-ups and verifications so far."""
        return self.postgres.loads, self.hashing.asked


@asynccontextmanager
async def running(url: str, *, ttl: float = TTL, real_time: bool = False) -> AsyncIterator[Ring]:
    clock = Clock()
    async with CountedPostgres.open(url) as postgres:
        assert isinstance(postgres, CountedPostgres)
        with CountedHashing() as hashing:
            keyring = Keyring(postgres, hashing, ttl=ttl, clock=time.monotonic if real_time else clock)
            async with asyncio.TaskGroup() as tasks:
                run = tasks.create_task(keyring.run())
                await keyring.wait_up()
                yield Ring(keyring, hashing, postgres, clock)
                run.cancel()


_minted: list[tuple[ApiKey, str]] = []  # and hashed, which takes long: the same few serve in every database


async def new_key(url: str, draft: Key = DRAFT) -> ApiKey:
    """Another key of tenant acme."""
    async with Postgres.open(url) as postgres, Registries(postgres).open() as registry:
        before = len(await registry.keys())
        if before == len(_minted):
            key = keys.mint(os.urandom)
            with Hashing() as hashing:
                _minted.append((key, await hashing.hash(key.reveal().encode())))
        key, hash = _minted[before]
        if not before:
            await registry.add_tenant(Tenant(id=0, name="acme", models=frozenset({"llama3.1:8b"})))
        tenant = await registry.tenant("acme")
        assert tenant is not None
        assert await registry.add_key(replace(draft, prefix=key.prefix, hash=hash, tenant=tenant))
        return key


def wrong(key: ApiKey) -> ApiKey:
    """A well-formed key with the same prefix and another secret."""
    other = keys.parse(forged(key.prefix))
    assert other is not None
    return other


def forged(prefix: str) -> str:
    body = prefix + keys.mint(os.urandom).reveal()[12:-6]
    return body + keys.checksum(body)


def unknown() -> ApiKey:
    return keys.mint(os.urandom)


async def soon(true: Callable[[], bool], seconds: float = 60.0) -> float:
    """Wait for what happens in the background; how long that took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.005)
    return time.monotonic() - began
