"""Logs of a running instance, kept from growing for ever.

Envoy's access log is renamed and Envoy told to open it anew, so that no line is lost: policy finds there what the log's
stream lost (`policy.admission.recovery`), and follows a file through its names. The other logs are copied away and cut:
a part holds its file open and cannot be told; what it wrote between the copy and the cut is lost, a line or two.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from typing import TYPE_CHECKING

from gateway import envoy_admin
from policy.stores.access_file import KEPT as ACCESS_KEPT
from policy.stores.access_file import older

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.log_files import Logs

MAX_BYTES = 64 << 20  # of one file; a file may pass it by what is written within EVERY_SECONDS
EVERY_SECONDS = 1.0
ACCESS_LOG = "access.log"


async def keep_bounded(logs: Logs, admin: Path, max_bytes: int) -> None:
    """Look at the sizes every second, until cancelled. `admin` is the socket of Envoy's admin page."""
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        if await asyncio.to_thread(_look, logs, max_bytes):
            # Where that fails, or Envoy is away, the file is still missing at the next look.
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(EVERY_SECONDS):
                    await envoy_admin.ask(admin, "POST", "/reopen_logs")


def end_last_line(path: Path) -> None:
    """An Envoy that was killed may have left half a line, which the first of the next would be joined to."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _look(logs: Logs, max_bytes: int) -> bool:
    """Whether Envoy is to be told to open its log anew."""
    access = logs.directory / ACCESS_LOG
    for path in logs.directory.glob("*.log"):
        if path != access and _size(path) > max_bytes:
            logs.shift(path.stem)
            shutil.copyfile(path, path.with_name(f"{path.name}.1"))
            with path.open("r+b") as file:
                file.truncate()
    if _size(access) > max_bytes:
        for age in range(ACCESS_KEPT, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                older(access, age - 1).rename(older(access, age))
    return not access.exists()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
