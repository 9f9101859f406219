"""The parts' logs: one file a part, what was before beside it, and what to quote of one when its part has died."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  # a dataclass field

from gateway.failure import redacted

_QUOTED_LINES = 8
_KEPT = 3
_READ_BYTES = 32_768

# Python's account of where it was; what happened stands on the other lines.
_FRAMES = (
    'File "',
    "Traceback (",
    "Exception Group Traceback (",
    "Exception ignored",
    "During handling",
    "The above exception",
    "^",
    "~",
)
_INDENTED = re.compile(r"\s*\|\s{4}|\s{4}(?!\s*\|)")
_RULE = re.compile(r"[-+ \d]+")


@dataclass(frozen=True, slots=True)
class Logs:
    """A directory of logs. What was before stays as .1 .2 .3: of earlier starts, or of this one where it grew large
    (`gateway.log_sizes`)."""

    directory: Path

    def path(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def rotate(self, name: str) -> None:
        """Make way for a new file of this name."""
        self.shift(name)
        with contextlib.suppress(FileNotFoundError):  # the first start
            self.path(name).rename(self.directory / f"{name}.log.1")

    def shift(self, name: str) -> None:
        """Make way for a new .1"""
        for age in range(_KEPT, 1, -1):
            with contextlib.suppress(FileNotFoundError):  # not that many yet
                (self.directory / f"{name}.log.{age - 1}").rename(self.directory / f"{name}.log.{age}")

    def open(self, name: str) -> int:
        return os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def last_words(self, name: str) -> str:
        """The lines at the log's end that say something, without secrets."""
        try:
            with self.path(name).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _READ_BYTES))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return redacted("\n".join(_telling(text.splitlines())[-_QUOTED_LINES:]))


def _telling(lines: list[str]) -> list[str]:
    """Without the frames of Python's tracebacks, the bars that exception groups draw, and empty lines."""
    told = []
    after_frame = False
    for line in lines:
        bare = line.lstrip(" |+")
        if bare.startswith(_FRAMES):
            after_frame = bare.startswith(_FRAMES[0])
        elif after_frame and _INDENTED.match(line):  # the source line that the frame quotes
            after_frame = False
        elif bare and not _RULE.fullmatch(bare):
            after_frame = False
            told.append(bare)
    return told
