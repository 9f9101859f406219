"""Envoy's access log as a file: whole lines from where the last reading ended, over rotation by renaming.

A position is the file's inode and an offset. A file that was renamed to `NAME.1` since (the launcher does so at each
start) is read to its end first. What was removed meanwhile is lost, and only that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_AT_ONCE = 1 << 20  # bytes in one reading


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
        self._paths = (path, path.with_name(f"{path.name}.1"))

    def lines(self, mark: str) -> list[tuple[bytes, str]]:
        """As `read`, with positions as text."""
        return [(line, str(position)) for line, position in self.read(Position.parse(mark))]

    def read(self, position: Position) -> list[tuple[bytes, Position]]:
        """Lines that follow `position`, each with the position after it. Blocks; [] where there are none."""
        now, before = self._paths
        if position.inode and _inode(now) != position.inode and _inode(before) == position.inode:
            lines = _lines(before, position)
            if lines:
                return lines
        if _inode(now) != position.inode:
            position = Position(_inode(now), 0)
        return _lines(now, position)


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _lines(path: Path, position: Position) -> list[tuple[bytes, Position]]:
    try:
        with path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            offset = position.offset if inode == position.inode else 0
            file.seek(offset)
            piece = file.read(_AT_ONCE)
    except OSError:
        return []
    found = []
    *whole, rest = piece.split(b"\n")
    for line in whole:
        offset += len(line) + 1
        found.append((line, Position(inode, offset)))
    if not whole and len(rest) == _AT_ONCE:  # no line of Envoy's is that long: step over it
        found.append((b"", Position(inode, offset + len(rest))))
    return found
