"""Envoy's access log as a file: whole lines from where the last reading ended, over rotation by renaming.

A position is the file's inode and an offset. A file is renamed to `NAME.1` when it has grown large, that one to
`NAME.2` and so on up to KEPT; reading goes on in the file where it was, under whatever name, and then through the newer
ones. It begins with the oldest. What was removed meanwhile is lost, and only that.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

KEPT = 4  # files besides the one that is written
_AT_ONCE = 1 << 20  # bytes in one reading


def older(path: Path, age: int) -> Path:
    """The name of the file that was renamed `age` times; 0 is the one that is written."""
    return path.with_name(f"{path.name}.{age}") if age else path


@dataclass(frozen=True, slots=True)
class Position:
    inode: int = 0
    offset: int = 0

    @classmethod
    def parse(cls, text: str) -> Position:
        inode, _, offset = text.partition(":")
        return cls(int(inode), int(offset)) if inode.isdigit() and offset.isdigit() else cls()

    def __str__(self) -> str:
        return f"{self.inode}:{self.offset}"


class AccessFile:
    """One log file, named by its path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self, mark: str) -> list[tuple[bytes, str]]:
        """As `read`, with positions as text."""
        return [(line, str(position)) for line, position in self.read(Position.parse(mark))]

    def read(self, position: Position) -> list[tuple[bytes, Position]]:
        """Lines that follow `position`, each with the position after it. Blocks; [] where there are none."""
        with ExitStack() as opened:
            # From the newest to the oldest: a file that is renamed meanwhile is met twice then, and never passed over.
            files: dict[int, BinaryIO] = {}
            for age in range(KEPT + 1):
                with contextlib.suppress(OSError):
                    file = opened.enter_context(older(self._path, age).open("rb"))
                    files[os.fstat(file.fileno()).st_ino] = file
            order = list(reversed(files))
            if position.inode in files:
                order = order[order.index(position.inode) :]
            for inode in order:
                found = _lines(files[inode], inode, position)
                if found:
                    return found
        return []


def _lines(file: BinaryIO, inode: int, position: Position) -> list[tuple[bytes, Position]]:
    offset = position.offset if inode == position.inode else 0
    if offset > os.fstat(file.fileno()).st_size:
        offset = 0  # a new file that got the number of one removed
    file.seek(offset)
    piece = file.read(_AT_ONCE)
    found = []
    *whole, rest = piece.split(b"\n")
    for line in whole:
        offset += len(line) + 1
        found.append((line, Position(inode, offset)))
    if not whole and len(rest) == _AT_ONCE:  # no line of Envoy's is that long: step over it
        found.append((b"", Position(inode, offset + len(rest))))
    return found
