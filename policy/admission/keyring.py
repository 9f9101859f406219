"""The keyring: whose key is this, and does it open anything now?

Two facts answer that, and each is remembered by itself. A *proof* says that a secret (known here by its keyed digest
only) does or does not match an argon2id hash; it costs a tenth of a second. A *record* is the key's row with its
tenant; it costs one query. A change in the database drops records and leaves proofs: a new limit does not cost argon2
again, and a proof counts only for the very hash the record has now, so a key created a moment ago works at once.

Both are remembered for TTL seconds at most and renewed ahead of that, in the background, while the key is in use.
However many requests wait for one fact, it is fetched once. Changes arrive as notices on a connection that is watched:
while there is none, nothing remembered can be trusted and every key is refused (fail closed).

The secret is always tried before the key's state is looked at, and an unknown prefix is tried against a hash that
nothing matches: a stranger cannot tell unknown from wrong, nor wrong from revoked. Under a flood only, waiting times
can tell a known prefix from an unknown one; prefixes are no secrets, and good keys pass the flood for it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Protocol

from policy.admission.flights import Flights, Stopped
from policy.admission.hashing import Crowded, Hashing, nobodys_hash
from policy.admission.lookups import Lookups
from policy.admission.recent import Recent
from policy.admission.stamps import Stamps
from policy.rules import keys
from policy.rules.decision import Deny, Reason
from policy.rules.faults import DatabaseDown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from policy.rules.keys import ApiKey
    from policy.rules.tenants import Key

TTL = 30.0  # seconds that anything is remembered
_AHEAD = 2 / 3  # of the TTL: a use after that renews in the background
_RECONNECT_SECONDS = 0.25
_MANY, _SOME = 65536, 16384  # how many good and bad ones of each kind are remembered

_log = logging.getLogger(__name__)


class Watch(Protocol):
    """Hears of changes."""

    async def notice(self) -> str:
        """The next: `key:<prefix>`, `tenant:<id>`, `sessions`, or anything else for "all". DatabaseDown when none can
        come."""


class KeyStore(Protocol):
    """Where keys are. Each raises DatabaseDown when it cannot be reached."""

    async def load(self, prefixes: Collection[str]) -> Mapping[str, Key]: ...

    async def stamp(self, used: Mapping[int, datetime]) -> None: ...

    def watch(self) -> AbstractAsyncContextManager[Watch]: ...


@dataclass(frozen=True, slots=True)
class _Record:
    """What the store said about a prefix, and when it was asked (monotonic seconds)."""

    key: Key | None
    hash: str
    at: float


@dataclass(frozen=True, slots=True)
class _Proof:
    """Whether a secret matches `hash`, and when that was computed."""

    hash: str
    matches: bool
    at: float


class Keyring:
    """Keys by what is presented. `run` must be running; until it has reached the store every key is refused."""

    def __init__(
        self,
        store: KeyStore,
        hashing: Hashing,
        *,
        pepper: bytes | None = None,
        ttl: float = TTL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._hashing = hashing
        self._ttl = ttl
        self._clock = clock
        self._pepper = pepper or secrets.token_bytes(32)  # digests never leave the process
        self._nobody = nobodys_hash()
        self._records = Recent[str, _Record](_MANY)
        self._absent = Recent[str, _Record](_SOME)  # apart, so that made-up prefixes push out no real one
        self._good = Recent[bytes, _Proof](_MANY)
        self._wrong = Recent[bytes, _Proof](_SOME)
        self._generation = 0  # counts changes: what was asked for before one is not remembered after it
        self._lookups = Lookups(store.load)
        self._reading = Flights[_Record](DatabaseDown)
        self._proving = Flights[_Proof](DatabaseDown, Crowded)
        self._stamps = Stamps(store)
        self._up = asyncio.Event()

    @property
    def up(self) -> bool:
        """Whether the store is reachable as far as we know; while it is not, every well-formed key is refused."""
        return self._up.is_set()

    async def wait_up(self) -> None:
        await self._up.wait()

    async def authenticate(self, presented: str | None, address: str, now: datetime) -> Key | Deny:
        """The usable key that `presented` is, or why not. `address` is the client's, for fairness alone."""
        if presented is None:
            return Deny(Reason.KEY_MISSING)
        key = keys.parse(presented)
        if key is None:
            return Deny(Reason.KEY_MALFORMED)
        digest = keys.digest(key, self._pepper)
        try:
            record, proof = self._remembered(key, digest, address) or await self._find(key, digest, address)
        except (DatabaseDown, Stopped):
            return Deny(Reason.DATABASE_DOWN, key_prefix=key.prefix)
        except Crowded:
            return Deny(Reason.KEY_OVERLOADED, key_prefix=key.prefix)
        if record.key is None:
            return Deny(Reason.KEY_UNKNOWN, key_prefix=key.prefix)
        if not proof.matches:
            return Deny(Reason.KEY_WRONG, key_prefix=key.prefix)
        if not record.key.usable_at(now):
            return _unusable(record.key, now)
        self._stamps.used(record.key.id, now)
        return record.key

    async def run(self) -> None:
        """Follow the store's changes, renew what is in use, write down what was used: until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._reading.tasks = self._proving.tasks = tasks
                tasks.create_task(self._lookups.run())
                tasks.create_task(self._stamps.run())
                await self._follow()
        finally:
            self._reading.tasks = self._proving.tasks = None

    # Remembering.

    def _remembered(self, key: ApiKey, digest: bytes, address: str) -> tuple[_Record, _Proof] | None:
        """Both facts if they may still be relied on; renews in the background what soon may not."""
        record = self._known(key.prefix)
        if record is None:
            return None
        proof = self._proven(digest, record.hash)
        if proof is None:
            return None
        if proof.matches:
            due = self._clock() - self._ttl * _AHEAD
            if record.at <= due:
                self._reading.start(key.prefix, partial(self._read, key.prefix))
            if proof.at <= due:
                self._proving.start((digest, record.hash), partial(self._prove, key, digest, record, address))
        return record, proof

    def _known(self, prefix: str) -> _Record | None:
        if not self.up:
            raise DatabaseDown("changes of keys cannot be heard")
        record = self._records.get(prefix) or self._absent.get(prefix)
        return record if record is not None and self._clock() < record.at + self._ttl else None

    def _proven(self, digest: bytes, hash: str) -> _Proof | None:
        proof = self._good.get(digest) or self._wrong.get(digest)
        if proof is None or proof.hash != hash:
            return None
        # A mismatch opens nothing and does not age.
        return None if proof.matches and self._clock() >= proof.at + self._ttl else proof

    # Finding out.

    async def _find(self, key: ApiKey, digest: bytes, address: str) -> tuple[_Record, _Proof]:
        while True:
            record = await self._record(key.prefix)
            proof = self._proven(digest, record.hash)
            if proof is None:
                work = partial(self._prove, key, digest, record, address)
                proof = await self._proving.join((digest, record.hash), work)
                record = await self._record(key.prefix)  # what changed while argon2 ran counts already
            if proof.hash == record.hash:
                return record, proof

    async def _record(self, prefix: str) -> _Record:
        return self._known(prefix) or await self._reading.join(prefix, partial(self._read, prefix))

    async def _read(self, prefix: str) -> _Record:
        generation, at = self._generation, self._clock()
        key = await self._lookups.find(prefix)
        record = _Record(key, self._nobody if key is None else key.hash, at)
        if generation == self._generation:
            there, elsewhere = (self._absent, self._records) if key is None else (self._records, self._absent)
            there.put(prefix, record)
            elsewhere.drop(prefix)
        return record

    async def _prove(self, key: ApiKey, digest: bytes, record: _Record, address: str) -> _Proof:
        lane, path = self._place(key, digest, record, address)
        matches = await self._hashing.verify(record.hash, key.reveal().encode(), lane, path)
        proof = _Proof(record.hash, matches, self._clock())
        there, elsewhere = (self._good, self._wrong) if matches else (self._wrong, self._good)
        there.put(digest, proof)
        elsewhere.drop(digest)
        return proof

    def _place(self, key: ApiKey, digest: bytes, record: _Record, address: str) -> tuple[str, tuple[Hashable, ...]]:
        """Where to wait for argon2 (see `policy.admission.turns`)."""
        if digest in self._good:  # the proof has aged, yet says: this is no flood
            return "proven", (digest,)
        if record.key is None:
            return "unknown", (_origin(address),)
        return "known", (key.prefix, _origin(address))

    # Following changes.

    async def _follow(self) -> None:
        lost = False  # said once for each outage
        while True:
            try:
                async with self._store.watch() as watch:
                    self._forget("all")
                    self._up.set()
                    lost = False
                    _log.info("following changes of keys")
                    while True:
                        self._forget(await watch.notice())
            except DatabaseDown as error:
                if not lost:
                    lost = True
                    _log.error("every key is refused until the database can be reached: %s", error)
            finally:
                self._up.clear()
                self._forget("all")
            await asyncio.sleep(_RECONNECT_SECONDS)

    def _forget(self, notice: str) -> None:
        if notice == "sessions":  # nothing of a key changed
            return
        self._generation += 1
        self._reading.abandon()
        what, _, which = notice.partition(":")
        if what == "key":
            self._records.drop(which)
            self._absent.drop(which)
        elif what == "tenant":
            self._records.drop_where(lambda record: record.key is not None and str(record.key.tenant.id) == which)
        else:
            self._records.clear()
            self._absent.clear()


def _unusable(key: Key, now: datetime) -> Deny:
    if key.disabled or key.tenant.disabled:
        reason = Reason.KEY_DISABLED
    elif key.expires_at is not None and now >= key.expires_at:
        reason = Reason.KEY_EXPIRED
    else:
        reason = Reason.KEY_REVOKED
    return Deny(reason, tenant=key.tenant.name, tenant_id=key.tenant.id, key_id=key.id, key_prefix=key.prefix)


def _origin(address: str) -> Hashable:
    """Whose turn an address takes: IPv6 hands every customer 2^64 addresses, so those of a /64 share one."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    if ip.version == 6 and ip.ipv4_mapped is None:
        return int(ip) >> 64
    return address
