"""What computes for long gives way to what must answer soon."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from policy.admission.hashing import Hashing
from policy.rules.priority import give_way


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_thread_gives_way_and_its_process_does_not() -> None:
    before = niceness()
    with ThreadPoolExecutor(1, initializer=partial(give_way, 5)) as pool:
        assert pool.submit(niceness).result() == min(before + 5, 19)
    assert niceness() == before


def test_so_do_the_threads_that_it_starts() -> None:
    """argon2 starts one for each lane."""
    found: list[int] = []

    def starts_another() -> None:
        thread = threading.Thread(target=lambda: found.append(niceness()))
        thread.start()
        thread.join()

    with ThreadPoolExecutor(1, initializer=partial(give_way, 3)) as pool:
        pool.submit(starts_another).result()
    assert found == [min(niceness() + 3, 19)]


def test_niceness_has_an_end() -> None:
    with ThreadPoolExecutor(1, initializer=partial(give_way, 100)) as pool:
        assert pool.submit(niceness).result() == 19


def test_keys_are_hashed_so() -> None:
    with Hashing() as hashing:
        assert hashing._threads.submit(niceness).result() == min(niceness() + 10, 19)
