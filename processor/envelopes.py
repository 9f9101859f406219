"""What all envelopes of a process share: the server's keys, the threads that open and seal, who judges, the claims.

RSA costs milliseconds of CPU and releases the interpreter's lock: it runs in a few threads of its own, so that the
event loop, and with it every plain stream, goes on. Reading what was inside is done there too. The line before the
threads is short; beyond it an envelope is refused with 503 at once, since its client can wait better than our memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from policy.rules import requests
from policy.rules.decision import Deny, Reason
from policy.rules.endpoints import OPENED_ENVELOPE
from policy.rules.judgement import Mode, Plan
from policy.rules.priority import give_way
from policy.rules.tiers import Tier
from processor.background import in_background
from processor.envelope import Opened, open_package, seal
from processor.envelope_metadata import add_metadata, response_metadata
from processor.envelope_refusal import Cause, Refusal
from processor.memory import wipe, wipe_bytes
from processor.server_key_files import ServerKeyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    from policy.rules.decision import Allow
    from policy.rules.endpoints import Endpoint
    from policy.rules.grant import Grant
    from policy.rules.requests import Ask, Bounds
    from processor.memory import Protection
    from processor.replays import Replays
    from processor.server_keys import ServerKeys

log = logging.getLogger(__name__)

AGAIN_SECONDS = 5.0  # after keys that could not be read
PRUNE_SECONDS = 3600.0


class Judge(Protocol):
    """The judgement that any request gets: policy's own, over the same counters."""

    async def judge(self, plan: Plan, endpoint: Endpoint, ask: Ask) -> Allow | Deny: ...
    async def refuse(self, plan: Plan, reason: Reason) -> Deny: ...


class Observer(Protocol):
    """Is told what became of each envelope, in a word, and how long opening one took."""

    def enveloped(self, outcome: str) -> None: ...
    def opened(self, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes of a package, threads that work on them, and packages that may wait for one."""

    package_bytes: int
    threads: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Inside:
    """What was in an envelope: its bytes, which have to be wiped, and what they ask for."""

    opened: Opened
    ask: Ask


class Envelopes:
    """One a process. `pinned` are the tiers with upstreams of their own."""

    def __init__(
        self,
        keys: ServerKeys,
        judges: Mapping[Tier, Judge],
        replays: Replays,
        protection: Protection,
        observer: Observer,
        *,
        limits: Limits,
        pinned: frozenset[Tier] = frozenset(),
        looked: Callable[[], Awaitable[None]],
    ) -> None:
        """`looked` returns once it is known what the upstreams have."""
        self.replays = replays
        self.observer = observer
        self.pinned = pinned
        self._keys = keys
        self._judges = judges
        self._protection = protection
        self._limits = limits
        self._looked = looked
        self._waiting = 0
        self._ready = False
        self._pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="envelope", initializer=partial(give_way, 5))

    @property
    def ready(self) -> bool:
        """Whether there is a key. On the very first start it takes seconds to make."""
        return self._ready

    async def run(self) -> None:
        """For ever: have a key, then remove those that have ended."""
        while not self._ready:
            try:
                keys = await in_background(lambda: self._keys.start(int(time.time())))
                log.info("envelopes are opened", extra={"fingerprint": keys[0].public.fingerprint})
                self._ready = True
            except (ServerKeyError, OSError) as error:
                log.error("no envelope can be opened", extra={"fault": str(error)})
                await asyncio.sleep(AGAIN_SECONDS)
        while True:
            try:
                gone = await in_background(lambda: self._keys.prune(int(time.time())))
                if gone:
                    log.info("server keys removed", extra={"numbers": gone})
            except (ServerKeyError, OSError) as error:
                log.error("server keys not removed", extra={"fault": str(error)})
            await asyncio.sleep(PRUNE_SECONDS)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def open(self, package: bytes, grant: Grant) -> Inside | Refusal | Deny:
        """Open a package and read what is inside, held to the bounds of the grant's tenant; a Deny where that is not
        possible now, whatever it holds."""
        if len(package) > self._limits.package_bytes:
            return Refusal(Cause.TOO_LARGE)
        if self._waiting >= self._limits.waiting:
            log.warning("too many envelopes wait to be opened", extra={"waiting": self._waiting})
            return Deny(Reason.ENVELOPES_WAIT)
        begun = time.perf_counter()
        self._waiting += 1
        work: Future[Inside | Refusal] = self._pool.submit(self._open, package, _plan(grant).key.tenant.bounds)
        try:
            found = await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            work.add_done_callback(_forget)  # the client left; what is inside is nobody's any more
            raise
        except ServerKeyError as error:
            log.error("no envelope can be opened", extra={"fault": str(error)})
            return Deny(Reason.SERVER_KEY)
        finally:
            self._waiting -= 1
        self.observer.opened(time.perf_counter() - begun)
        return found

    def _open(self, package: bytes, bounds: Bounds) -> Inside | Refusal:
        keys = self._keys.in_force(int(time.time()))
        opened = open_package(package, [key.private for key in keys], random=os.urandom)
        if isinstance(opened, Refusal):
            return opened
        plaintext = bytes(opened.plaintext)
        ask = requests.parse(OPENED_ENVELOPE, plaintext, bounds)
        wipe_bytes(plaintext)
        if isinstance(ask, requests.Refusal):
            opened.wipe()
            return Refusal(Cause.PLAINTEXT)
        return Inside(opened, ask)

    async def judge(self, grant: Grant, ask: Ask) -> Allow | Deny:
        """The judgement on what was inside, with its tokens reserved. StoreDown as everywhere."""
        await self._looked()
        plan = _plan(grant)
        return await self._judges[_tier(plan)].judge(plan, OPENED_ENVELOPE, ask)

    async def refuse(self, grant: Grant, reason: Reason) -> Deny:
        """Write down that an envelope was refused."""
        plan = _plan(grant)
        return await self._judges[_tier(plan)].refuse(plan, reason)

    def metadata(self, payload_id: str, tier: str, now: int) -> dict[str, object]:
        """What an answer says of this process; `now` in Unix seconds."""
        return response_metadata(
            payload_id=payload_id, processed_at=now, security_tier=tier, protection=self._protection
        )

    async def seal(self, answer: bytes, metadata: Mapping[str, object], client_key: RSAPublicKey, now: int) -> bytes:
        """The sealed answer; ValueError if `answer` is no JSON object."""

        def work() -> bytes:
            plain = add_metadata(answer, metadata)
            try:
                return seal(plain, client_key, random=os.urandom, processed_at=now)
            finally:
                wipe(plain)

        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _plan(grant: Grant) -> Plan:
    subject = grant.subject
    if subject is None:
        raise ValueError("an envelope's grant has a subject")
    key = subject.key(
        id=grant.key_id, counts_as=grant.counts_as, prefix=grant.key_prefix, tenant_id=grant.tenant_id,
        tenant=grant.tenant,
    )  # fmt: skip
    return Plan(
        grant.request_id,
        grant.started_at,
        Mode.COUNT,
        key,
        grant.endpoint,
        address=subject.address,
        counted=True,
        tier=Tier(subject.tier),
    )


def _tier(plan: Plan) -> Tier:
    assert plan.tier is not None  # noqa: S101  # `_plan` has just set it
    return plan.tier


def _forget(work: Future[Inside | Refusal]) -> None:
    if not work.cancelled() and work.exception() is None:
        found = work.result()
        if isinstance(found, Inside):
            found.opened.wipe()
