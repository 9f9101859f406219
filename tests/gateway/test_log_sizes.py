"""Logs that grow are cut, while those who write them go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from gateway import log_sizes
from gateway.log_files import Logs

if TYPE_CHECKING:
    from pathlib import Path


def looked(directory: Path, max_bytes: int) -> bool:
    return log_sizes._look(Logs(directory), max_bytes)


def test_a_parts_log_is_copied_away_and_cut(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    part = logs.open("part")  # as a part has it: it does not know of any of this
    for number in range(6):
        os.write(part, f"{number}".encode() * 100)
        looked(tmp_path, 150)
    os.close(part)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"part.log": "", "part.log.1": "4" * 100 + "5" * 100, "part.log.2": "2" * 100 + "3" * 100,
                    "part.log.3": "0" * 100 + "1" * 100}  # fmt: skip


def test_no_more_than_so_many_are_kept(tmp_path: Path) -> None:
    access = tmp_path / log_sizes.ACCESS_LOG
    for number in range(20):
        for path in (access, tmp_path / "part.log"):
            path.write_text(f"{number}" * 100)
        assert looked(tmp_path, 99), "Envoy is to open its log anew"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [*(f"access.log.{age}" for age in range(1, 5)), "part.log", *(f"part.log.{n}" for n in range(1, 4))]


def test_small_ones_are_left_alone(tmp_path: Path) -> None:
    for name in ("part.log", log_sizes.ACCESS_LOG):
        (tmp_path / name).write_text("x" * 100)
    assert not looked(tmp_path, 100)
    assert len([*tmp_path.iterdir()]) == 2


def test_an_envoy_that_is_away_is_asked_again(tmp_path: Path) -> None:
    """The file stays missing until somebody makes it: no failure, and no end of looking."""

    async def run() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.5 * log_sizes.EVERY_SECONDS):
                await log_sizes.keep_bounded(Logs(tmp_path), tmp_path / "no.sock", 10)

    asyncio.run(run())
    assert looked(tmp_path, 10)


def test_half_a_line_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log_sizes.end_last_line(path)
    assert not path.exists()
    for before, after in (("", ""), ("a\n", "a\n"), ("a\nb", "a\nb\n")):
        path.write_text(before)
        log_sizes.end_last_line(path)
        assert path.read_text() == after
