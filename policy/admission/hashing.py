"""argon2id for API keys: off the event loop, a few at a time, everybody in turn.

A verification costs a tenth of a second and 64 MiB on purpose. It runs in threads (argon2 lets go of the interpreter
lock), at most AT_ONCE of them and at a low priority, and what waits for a thread waits in `Turns`, so that a flood of
wrong keys takes its own turns and nobody else's, and no time that requests with good keys need.
"""

from __future__ import annotations

import asyncio
import secrets
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, Self

from argon2 import Parameters, PasswordHasher, Type
from argon2.exceptions import VerifyMismatchError

from policy.admission.turns import Turns
from policy.rules.priority import give_way

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from policy.admission.turns import Path

# RFC 9106, section 4, the second recommended option (for memory-constrained environments): t=3 iterations, p=4 lanes,
# m=2^16 KiB, a 128-bit salt and a 256-bit tag.
PARAMETERS = Parameters(
    type=Type.ID, version=19, salt_len=16, hash_len=32, time_cost=3, memory_cost=65536, parallelism=4
)
AT_ONCE = 2  # argon2 at a time, of `parallelism` threads and 64 MiB each
# Who may wait in which lane, at about ten a second. Strangers: what Envoy's five seconds allow for, the rest hears "no"
# at once. Keys that exist: as many as may come at a cold start; who leaves before its turn finds the proof when it asks
# again. Keys proven before: there are no more of them than of keys.
ROOMS = {"unknown": 32, "known": 1024, "proven": 65536}


class Crowded(Exception):
    """Too many wait already."""


class Observer(Protocol):
    """Is told of every verification. Its methods must not raise."""

    def verified(self, outcome: str, waited: float, took: float | None) -> None:
        """`outcome`: match, mismatch, error or crowded (then nothing was computed and `took` is None); seconds."""

    def verifications_waiting(self, waiting: int) -> None: ...


class _Unobserved:
    def verified(self, outcome: str, waited: float, took: float | None) -> None:
        pass

    def verifications_waiting(self, waiting: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Job:
    hash: str
    secret: bytes
    verdict: asyncio.Future[bool]
    asked: float


class Hashing:
    """Hashes and verifies; use as a context manager, from one event loop."""

    def __init__(
        self, *, at_once: int = AT_ONCE, rooms: Mapping[str, int] = ROOMS, observer: Observer | None = None
    ) -> None:
        self._argon2 = PasswordHasher.from_parameters(PARAMETERS)
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="argon2", initializer=partial(give_way, 10))
        self._free = at_once
        self._turns: Turns[_Job] = Turns(rooms)
        self._observer = observer or _Unobserved()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._threads.shutdown(cancel_futures=True)  # waits for at most one verification

    async def hash(self, secret: bytes) -> str:
        """The argon2id hash of `secret` in PHC string form, with a salt of its own."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._argon2.hash, secret)

    async def verify(self, hash: str, secret: bytes, lane: str, path: Path) -> bool:
        """Whether `hash` (PHC string form) is of `secret`. `lane` and `path` say where to wait; Crowded: no room there.

        A hash that is not one at all, or no memory to compute it in, is an error of argon2, not a "no".
        """
        job = _Job(hash, secret, asyncio.get_running_loop().create_future(), perf_counter())
        turned_away = self._turns.put(lane, path, job)
        if turned_away is not None and not turned_away.verdict.done():
            turned_away.verdict.set_exception(Crowded())
            self._observer.verified("crowded", perf_counter() - turned_away.asked, None)
        self._start_next()
        return await job.verdict

    def _start_next(self) -> None:
        while self._free and len(self._turns):
            job = self._turns.take()
            if job.verdict.done():  # its caller was cancelled
                continue
            self._free -= 1
            working = asyncio.get_running_loop().run_in_executor(self._threads, self._matches, job.hash, job.secret)
            working.add_done_callback(partial(self._finish, job, perf_counter()))
        self._observer.verifications_waiting(len(self._turns))

    def _finish(self, job: _Job, started: float, working: asyncio.Future[bool]) -> None:
        self._free += 1
        if not working.cancelled():
            outcome = "error" if working.exception() else "match" if working.result() else "mismatch"
            self._observer.verified(outcome, started - job.asked, perf_counter() - started)
        if working.cancelled():
            job.verdict.cancel()
        elif (error := working.exception()) is not None:
            if not job.verdict.done():
                job.verdict.set_exception(error)
        elif not job.verdict.done():
            job.verdict.set_result(working.result())
        if not working.cancelled():  # cancelled means that the threads are being shut down
            self._start_next()

    def _matches(self, hash: str, secret: bytes) -> bool:
        try:
            return self._argon2.verify(hash, secret)
        except VerifyMismatchError:
            return False


def nobodys_hash() -> str:
    """A hash that no secret has, which costs exactly what a real one costs to try: random where the tag belongs."""
    salt, tag = (
        b64encode(secrets.token_bytes(size)).decode().rstrip("=") for size in (PARAMETERS.salt_len, PARAMETERS.hash_len)
    )
    costs = f"m={PARAMETERS.memory_cost},t={PARAMETERS.time_cost},p={PARAMETERS.parallelism}"
    return f"$argon2id$v={PARAMETERS.version}${costs}${salt}${tag}"
