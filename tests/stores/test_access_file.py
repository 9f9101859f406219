"""Envoy's log read as a file: every line once, whatever it is called meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from policy.stores.access_file import KEPT, AccessFile, older

if TYPE_CHECKING:
    from pathlib import Path


class Log:
    """A log that is written and rotated, and a reader that follows it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "access.log"
        self.reader = AccessFile(self.path)
        self.mark = ""

    def write(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(text)

    def rotate(self) -> None:
        older(self.path, KEPT).unlink(missing_ok=True)
        for age in range(KEPT, 0, -1):
            if older(self.path, age - 1).exists():
                older(self.path, age - 1).rename(older(self.path, age))

    def read(self, most: int = 100) -> list[str]:
        """Until nothing comes any more, or `most` lines."""
        found: list[str] = []
        while len(found) < most and (lines := self.reader.lines(self.mark)):
            taken = lines[: most - len(found)]
            self.mark = taken[-1][1]
            found += [line.decode() for line, _ in taken]
        return found


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


def test_whole_lines_once(log: Log) -> None:
    assert log.read() == []
    log.write("a\nb\nc")
    assert log.read() == ["a", "b"]
    assert log.read() == []
    log.write("c\n")
    assert log.read() == ["cc"]


def test_through_as_many_files_as_are_kept(log: Log) -> None:
    log.write("0\nrest of 0\n")
    assert log.read(most=1) == ["0"]
    for number in range(1, KEPT + 1):
        log.rotate()
        assert log.reader.lines(log.mark), "also while Envoy has not made the new one yet"
        log.write(f"{number}\n")
    assert log.read() == ["rest of 0", *map(str, range(1, KEPT + 1))]
    assert log.read() == []


def test_what_was_removed_is_lost_and_only_that(log: Log) -> None:
    log.write("0\nrest of 0\n")
    assert log.read(most=1) == ["0"]
    keep = log.path.open()  # or a new file might get its number
    for number in range(1, KEPT + 2):
        log.rotate()
        log.write(f"{number}\n")
    assert log.read() == list(map(str, range(1, KEPT + 2)))
    keep.close()


def test_half_a_line_of_a_renamed_file_holds_nothing_up(log: Log) -> None:
    log.write("a\nhalf")
    assert log.read() == ["a"]
    log.rotate()
    log.write("b\n")
    assert log.read() == ["b"]


def test_a_file_that_was_cut_is_read_from_its_beginning(log: Log) -> None:
    log.write("a long line\n")
    assert log.read() == ["a long line"]
    log.path.write_text("b\n")
    assert log.read() == ["b"]


def test_the_first_look_begins_with_the_oldest(log: Log) -> None:
    log.write("old\n")
    log.rotate()
    log.write("new\n")
    assert log.read() == ["old", "new"]


def test_a_line_without_end_is_stepped_over(log: Log) -> None:
    log.write("x" * (1 << 20))
    assert log.read() == [""]
    log.write("\nb\n")
    assert log.read() == ["", "b"]
