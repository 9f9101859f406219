"""One supervised process: what it is, how it is forked, how its end reads.

Each part holds an advisory lock for as long as any process of it lives: the descriptor is inherited through fork and
exec, so the kernel keeps the account, not a pid file. Whoever starts the part next (this supervisor after a crash, or
the next one after its own kill -9) first waits until that lock is free.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway import child
from gateway.failure import Failure

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.log_files import Logs

PREDECESSOR_SECONDS = 15.0
POLL_SECONDS = 0.02

Probe = Callable[[], Awaitable[bool]]


async def nothing() -> None:
    """Nothing has to be done."""


@dataclass(frozen=True, slots=True)
class Part:
    """What the supervisor has to know of a process."""

    name: str
    argv: Sequence[str]
    ready: Probe
    stage: int  # parts of a stage stop together, the highest stage first
    env: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[], None] = lambda: None  # what must be put right on disk before each start
    drain: Callable[[], Awaitable[None]] = nothing  # asks it to take no more work, and returns when it has none
    drain_seconds: float = 5.0
    advice: str = ""  # what the operator can do when it dies
    stop_signal: signal.Signals = signal.SIGTERM
    hurry_signal: signal.Signals = signal.SIGKILL  # when the operator asks twice, or it does not stop in time
    orphan_signal: signal.Signals = signal.SIGKILL  # from the kernel, when the supervisor was killed
    stop_seconds: float = 5.0
    ready_seconds: float = 30.0
    data: Path | None = None  # set for a part that refuses to run as root: its data's owner runs it


async def fork(part: Part, logs: Logs, locks: Path) -> asyncio.subprocess.Process:
    """Start the part once its predecessor is gone. Failure if it cannot be started."""
    lock = await _lock(part, locks / f"{part.name}.lock")
    try:
        try:
            part.before()
            log = logs.open(part.name)
        except OSError as error:
            raise Failure(f"{part.name} cannot be started: {error}", do=part.advice) from error
        try:
            account = child.unprivileged_account(part.data) if part.data else None
            return await asyncio.create_subprocess_exec(
                *part.argv,
                env=dict(part.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                umask=0o077,
                pass_fds=(lock,),
                start_new_session=True,
                preexec_fn=child.prepare(part.orphan_signal, account),
            )
        except (OSError, subprocess.SubprocessError) as error:
            reason = logs.last_words(part.name) if isinstance(error, subprocess.SubprocessError) else str(error)
            raise Failure(f"{part.name} cannot be started: {reason}", do=part.advice) from error
        finally:
            os.close(log)
    finally:
        os.close(lock)


async def _lock(part: Part, path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        async with asyncio.timeout(PREDECESSOR_SECONDS):
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return lock
                except BlockingIOError:
                    await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        os.close(lock)
        raise Failure(
            f"{part.name} of an earlier run has not ended within {PREDECESSOR_SECONDS:.0f} s",
            do=f"Find it with `fuser {path}`, end it, then start again.",
        ) from None
    except BaseException:
        os.close(lock)
        raise


def how_it_ended(code: int | None) -> str:
    """In words, from `returncode`."""
    if code is None:
        return "has not ended"
    if code >= 0:
        return f"ended by itself with status {code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{hint}"
