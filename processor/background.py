"""Work that nobody waits for with a request in hand: in a thread of its own that gives way to all others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_NICE = 15


async def in_background(work: Callable[[], T]) -> T:
    """What `work` returns or raises. The thread ends with it; the process does not wait for it at its own end."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # so that a waiter who leaves takes nothing down

    def run() -> None:
        if sys.platform == "linux":  # there a priority is a thread's own; elsewhere it would be the whole process's
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            result = work()
        except BaseException as error:  # whoever waits gets it
            done.set_exception(error)
        else:
            done.set_result(result)

    threading.Thread(target=run, name="background", daemon=True).start()
    return await asyncio.wrap_future(done)
