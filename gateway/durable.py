"""The embedded Valkey's append-only file, put onto the disk once a second.

Valkey's own `appendfsync everysec` holds writes back for up to two seconds while a sync is under way, and a kill -9 in
that time loses what it had acknowledged. With `appendfsync no` every write is in the kernel before its answer leaves,
which survives a kill; that it also survives a power cut, less at most the last second, is seen to here.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SYNC_SECONDS = 1.0


async def keep_synced(directory: Path) -> None:
    """Sync the append-only files of `directory` every second, until cancelled."""
    while True:
        await asyncio.sleep(SYNC_SECONDS)
        await asyncio.to_thread(_sync, directory)


def _sync(directory: Path) -> None:
    for path in directory.glob("*.incr.aof"):
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # rewritten a moment ago
            continue
        try:
            os.fdatasync(file)
        finally:
            os.close(file)
