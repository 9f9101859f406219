"""What the parts of an instance hold: memory and file descriptors, from /proc."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from tests.harness import Gateway

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Held:
    """One part with all its processes."""

    rss: int  # bytes
    descriptors: int


def held(gateway: Gateway) -> dict[str, Held]:
    """By the part's name."""
    found = {}
    for part, pid in gateway.instance.pids().items():
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        rss = descriptors = 0
        for one in family:
            try:
                rss, descriptors = rss + one.memory_info().rss, descriptors + one.num_fds()
            except psutil.NoSuchProcess:
                continue  # PostgreSQL's workers come and go
        found[part] = Held(rss, descriptors)
    return found


def growth(before: dict[str, Held], after: dict[str, Held]) -> dict[str, float]:
    """MiB by which each part grew. PostgreSQL is left out: its resident pages are those of the buffers it shares."""
    return {
        part: round((after[part].rss - before[part].rss) / MIB, 1)
        for part in before
        if part in after and part != "postgres"
    }
