"""Starts the parts, notices when one dies, stops them in order.

Every part is a direct child in a process group of its own: Ctrl-C in a terminal reaches the supervisor alone, which
then stops the parts from the highest stage down. All forks happen on the event loop's thread, because the kernel's
parent death signal (`gateway.child`) counts the thread that forked as the parent.

A part that dies unasked raises `Failure` in the body of `async with Supervisor(...)`, wherever it is waiting; leaving
the body, however it is left, stops everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Self

from gateway.failure import Failure
from gateway.log_files import Logs
from gateway.part import POLL_SECONDS, Part, fork, how_it_ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

_FIRST_PAUSE = 0.25  # seconds before the first restart; doubled each time
_LONGEST_PAUSE = 10.0
_HEALTHY_AFTER = 30.0  # seconds alive after which an earlier death is forgotten


class OnDeath(Enum):
    """What the death of a part that had been ready means."""

    STOP = "stop"  # stop the others and say so
    RESTART = "restart"  # start it again, with a growing pause
    LEAVE = "leave"  # nothing: tests kill parts and start them again by themselves


class Stopped(Exception):
    """Raised in the supervisor's body when `ask_to_stop` was called."""


@dataclass(slots=True)
class _Child:
    part: Part
    process: asyncio.subprocess.Process
    born: float
    is_ready: bool = False
    stopping: bool = False
    pause: float = _FIRST_PAUSE

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    def send(self, number: signal.Signals) -> None:
        if self.alive:
            _signal_group(self.process.pid, number)

    async def ended(self) -> None:
        """Wait for its end, then end what it may have left in its process group."""
        process = self.process
        if process.returncode is None:
            await process.wait()
            _signal_group(process.pid, signal.SIGKILL)


class Supervisor:
    """Use as `async with`; not to be entered twice. `locks` is a directory that outlives the run."""

    def __init__(
        self, logs: Path, locks: Path, *, on_death: OnDeath = OnDeath.STOP, say: Callable[[str], None] = print
    ) -> None:
        self._logs = Logs(logs)
        self._locks = locks
        self._on_death = on_death
        self._say = say
        self._children: dict[str, _Child] = {}
        self._tasks = asyncio.TaskGroup()
        self._asked = asyncio.Event()
        self._hurried = False
        self._closing = False

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._tasks.create_task(self._raise_when_asked())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        await self._stop_all()
        end = Stopped()  # the group must learn of an end that was no error, or its tasks would wait for ever
        try:
            await self._tasks.__aexit__(kind or Stopped, error or end, trace)
        except BaseExceptionGroup as group:
            first = _first(group)
            if first is not end:
                raise first from None

    # What the launcher asks for

    async def start(self, part: Part) -> None:
        """Start it and wait until it answers. Failure if it dies or does not answer in time."""
        await self.spawn(part)
        await self.ready(part.name)

    async def spawn(self, part: Part) -> None:
        """Start it and do not wait until it answers."""
        if part.name not in self._children:
            self._logs.rotate(part.name)
        one = _Child(part, await fork(part, self._logs, self._locks), monotonic())
        self._children[part.name] = one
        self._tasks.create_task(self._watch(one))

    async def ready(self, name: str) -> None:
        """Wait until it answers its probe."""
        one = self._children[name]
        deadline = monotonic() + one.part.ready_seconds
        while not await one.part.ready():
            if not one.alive:
                raise self._death(one)
            if monotonic() > deadline:
                raise Failure(
                    f"{name} did not get ready within {one.part.ready_seconds:.0f} s",
                    quote=self._logs.last_words(name),
                    do=self._advice(one),
                )
            await asyncio.sleep(POLL_SECONDS)
        one.is_ready = True

    async def run(self, part: Part) -> None:
        """Run a helper to its end; Failure unless it exits with 0."""
        self._logs.rotate(part.name)
        one = _Child(part, await fork(part, self._logs, self._locks), monotonic())
        try:
            await one.ended()
        except BaseException:
            one.send(signal.SIGKILL)
            await one.ended()
            raise
        if one.process.returncode != 0:
            raise self._death(one)

    async def stop(self, name: str) -> None:
        """Stop one part and wait for its end."""
        await self._stop(self._children[name])

    async def restart(self, name: str) -> None:
        """Stop it if it runs, start it, wait until it answers."""
        await self.stop(name)
        await self.start(self._children[name].part)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal as an outsider would: a death that follows counts as unasked."""
        self._children[name].send(number)

    async def kill(self, name: str) -> None:
        """SIGKILL, and wait until the process is gone."""
        self._children[name].send(signal.SIGKILL)
        await self._children[name].ended()

    def pids(self) -> dict[str, int]:
        """Of the parts that run."""
        return {name: one.process.pid for name, one in self._children.items() if one.alive}

    @property
    def logs(self) -> Logs:
        return self._logs

    def log(self, name: str) -> Path:
        return self._logs.path(name)

    def ask_to_stop(self) -> None:
        """End the body with `Stopped`; asked a second time, end the parts without waiting for them."""
        if self._asked.is_set():
            self._hurried = True
            for one in self._children.values():
                one.send(one.part.hurry_signal)
        self._asked.set()

    # How it is done

    async def _watch(self, one: _Child) -> None:
        while True:
            await one.ended()
            if one.stopping or self._closing:
                return
            if self._on_death is OnDeath.LEAVE:
                return  # whoever waits for it in `ready` is told there
            if self._on_death is OnDeath.STOP or not one.is_ready:
                raise self._death(one)
            await self._revive(one)

    async def _revive(self, one: _Child) -> None:
        if monotonic() - one.born > _HEALTHY_AFTER:
            one.pause = _FIRST_PAUSE
        name, how = one.part.name, how_it_ended(one.process.returncode)
        self._say(f"{name} {how}; it is started again in {one.pause:.2g} s (log: {self.log(name)})")
        await asyncio.sleep(one.pause)
        one.pause = min(one.pause * 2, _LONGEST_PAUSE)
        if one.stopping or self._closing:
            return
        one.process = await fork(one.part, self._logs, self._locks)
        one.born = monotonic()
        if one.stopping or self._closing:  # asked meanwhile, when there was no process to stop
            one.send(signal.SIGKILL)

    def _death(self, one: _Child) -> Failure:
        when = "" if one.is_ready else " while it was starting"
        return Failure(
            f"{one.part.name} {how_it_ended(one.process.returncode)}{when}",
            quote=self._logs.last_words(one.part.name),
            do=self._advice(one),
        )

    def _advice(self, one: _Child) -> str:
        return f"{one.part.advice} Its log: {self.log(one.part.name)}".strip()

    async def _raise_when_asked(self) -> None:
        await self._asked.wait()
        if not self._closing:
            raise Stopped

    async def _stop_all(self) -> None:
        for stage in sorted({one.part.stage for one in self._children.values()}, reverse=True):
            async with asyncio.TaskGroup() as group:
                for one in self._children.values():
                    if one.part.stage == stage:
                        group.create_task(self._stop(one))

    async def _stop(self, one: _Child) -> None:
        one.stopping = True
        if one.alive and one.is_ready and not self._hurried:
            with contextlib.suppress(TimeoutError, OSError):  # then what it still does is cut
                async with asyncio.timeout(one.part.drain_seconds):
                    await one.part.drain()
        one.send(one.part.stop_signal)
        one.send(signal.SIGCONT)  # a part that was halted could not obey
        for harder in (one.part.hurry_signal, signal.SIGKILL):
            try:
                async with asyncio.timeout(one.part.stop_seconds):
                    return await one.ended()
            except TimeoutError:
                one.send(harder)
        await one.ended()


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # none left
        os.killpg(leader, number)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to tell: a defect before a failure, a failure before a stop that was asked for."""
    return min(_leaves(group), key=lambda error: (isinstance(error, Stopped), isinstance(error, Failure)))
