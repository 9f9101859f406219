"""Flights: work that many wait for and one does.

Whoever asks for work that is under way joins it, and nobody who leaves takes it down: a flight belongs to the task
group, not to a waiter. What a flight raises goes to its waiters; it never ends the task group, that is, everybody's.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Stopped(Exception):
    """The task group has ended, or has not begun."""


class Flights(Generic[T]):
    """Work under way, by name. Without a task group, before and after its owner runs, nothing can be started."""

    def __init__(self, *expected: type[Exception]) -> None:
        self._expected = expected  # what may fail without a word in the log: the waiters know what to do
        self.tasks: asyncio.TaskGroup | None = None
        self._flying: dict[Hashable, asyncio.Task[T | Exception]] = {}

    def start(self, name: Hashable, work: Callable[[], Coroutine[None, None, T]]) -> asyncio.Task[T | Exception]:
        task = self._flying.get(name)
        if task is None:
            if self.tasks is None:
                raise Stopped("nothing can be started now")
            task = self._flying[name] = self.tasks.create_task(self._fly(work()))
            task.add_done_callback(lambda task: self._land(name, task))
        return task

    async def join(self, name: Hashable, work: Callable[[], Coroutine[None, None, T]]) -> T:
        task = self.start(name, work)
        await asyncio.wait((task,))  # unlike `await task`, being cancelled here does not cancel the work
        if task.cancelled():
            raise Stopped("the work was stopped")
        result = task.result()
        if isinstance(result, Exception):
            raise result
        return result

    def abandon(self) -> None:
        """Whoever asks from now on does not join what is under way."""
        self._flying.clear()

    async def _fly(self, work: Coroutine[None, None, T]) -> T | Exception:
        try:
            return await work
        except self._expected as error:
            return error
        except Exception as error:  # it reaches the waiters; of a flight that renews in the background there are none
            _log.exception("unexpected failure of shared work")
            return error

    def _land(self, name: Hashable, task: asyncio.Task[T | Exception]) -> None:
        if self._flying.get(name) is task:
            del self._flying[name]
