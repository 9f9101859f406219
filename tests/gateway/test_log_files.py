"""What is quoted of a dead part's log."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from gateway.log_files import Logs

if TYPE_CHECKING:
    from pathlib import Path


def last_words(directory: Path, program: str) -> list[str]:
    logs = Logs(directory)
    script = directory / "program.py"  # a file: its lines are quoted in tracebacks
    script.write_text(program)
    with logs.path("part").open("w") as file:
        subprocess.run([sys.executable, script], stdout=file, stderr=file, check=False)
    return logs.last_words("part").splitlines()


def test_a_traceback_is_told_by_its_errors(tmp_path: Path) -> None:
    program = """
print('started', flush=True)
try:
    {}['a']
except KeyError as error:
    raise ValueError('no a') from error
"""
    assert last_words(tmp_path, program) == ["started", "KeyError: 'a'", "ValueError: no a"]


def test_an_exception_group_is_told_by_its_errors(tmp_path: Path) -> None:
    program = """
import asyncio
async def fails():
    raise OSError("no such socket")
async def main():
    async with asyncio.TaskGroup() as group:
        group.create_task(fails())
asyncio.run(main())
"""
    assert last_words(tmp_path, program)[-2:] == [
        "ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)",
        "OSError: no such socket",
    ]


def test_ordinary_lines_are_quoted_as_they_are_and_only_the_last_ones(tmp_path: Path) -> None:
    program = 'for n in range(20): print(\'{"event": "line %d"}\' % n); print()'
    assert last_words(tmp_path, program) == [f'{{"event": "line {n}"}}' for n in range(12, 20)]


def test_secrets_are_not_quoted(tmp_path: Path) -> None:
    secrets = [
        "Authorization: Bearer abc.def.ghi",
        "nz_AAAAAAAAABBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB",
        "postgresql://user:hunter2@db/paddock",
        "f" * 64,
    ]
    words = "\n".join(last_words(tmp_path, f"print({chr(10).join(secrets)!r})"))
    assert words == "Authorization: Bearer …\nnz_AAAAAAAAA…\npostgresql://user:…@db/paddock\n…"


def test_a_log_that_is_not_there_has_no_last_words(tmp_path: Path) -> None:
    assert Logs(tmp_path).last_words("never") == ""
