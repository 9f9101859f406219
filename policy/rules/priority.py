"""Threads that compute for long beside an event loop that must answer soon."""

from __future__ import annotations

import os
import threading


def give_way(by: int) -> None:
    """Lower the priority of the calling thread, and of the threads that it starts, by so many steps of niceness. Linux
    keeps a niceness for each thread; a nicer one gets what the others leave, and all of an idle machine."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + by, 19))
