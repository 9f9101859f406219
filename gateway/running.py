"""How a command finds the instance it works beside.

A running instance keeps a record, `running.json`, in its data directory, and one line naming that directory in a
per-user state directory. A record counts only while the very process that wrote it lives (its number and its start
time), so a crash leaves nothing to clean up: stale lines are dropped by whoever meets them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.argument_types import directory
from gateway.failure import Failure

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

RECORD = "running.json"


@dataclass(frozen=True, slots=True)
class Running:
    """One running instance."""

    data_dir: str
    pid: int
    started: str  # the process's start time as the kernel counts it; "" where it cannot be known
    url: str
    database_url: str
    redis_url: str
    server_key_dir: str = ""  # of the keys that envelopes are sealed to; "": they are turned off


@dataclass(frozen=True, slots=True)
class Stores:
    """Where a command finds the data it works on."""

    database_url: str
    redis_url: str | None  # None: only PostgreSQL was named
    running: Running | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The option that every command working on an instance has."""
    parser.add_argument(
        "--data-dir",
        type=directory,
        default=None,
        metavar="DIR",
        help="the running instance's data directory (default: PADDOCK_DATA_DIR, else the one that runs)",
    )


def default_data_dir() -> Path:
    """PADDOCK_DATA_DIR, else the user's data directory (XDG Base Directory Specification)."""
    named = os.environ.get("PADDOCK_DATA_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "paddock"


def stores(args: argparse.Namespace) -> Stores:
    """The stores that `args` and the environment name, else those of the running instance. Failure if none is meant."""
    asked: Path | None = getattr(args, "data_dir", None)
    usual = os.environ.get("PADDOCK_DATA_DIR")
    named = asked or (Path(usual) if usual else None)
    if named is not None and (found := read(named)) is not None:
        return _of(found)
    if asked is None and (database_url := os.environ.get("PADDOCK_DATABASE_URL")):
        return Stores(database_url, os.environ.get("PADDOCK_REDIS_URL") or None)
    if named is not None:
        raise Failure(f"no instance runs in {named}", do=f"Start it with `paddock up --data-dir {named}`.")
    return _of(_the_one(list(instances())))


def read(data_dir: Path) -> Running | None:
    """The instance that runs in this data directory, if one does."""
    try:
        text = (data_dir.expanduser() / RECORD).read_text(encoding="utf-8")
        record = Running(**json.loads(text))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise Failure(
            f"{data_dir} belongs to another user", do="Run this command as the user who started that instance."
        ) from None
    except (ValueError, TypeError):  # written by another version, or damaged
        return None
    return record if start_time(record.pid) == record.started else None


def instances() -> Iterator[Running]:
    """All of this user's that run. Lines that lead nowhere are dropped on the way."""
    for line in sorted(_state_directory().glob("*.path")):
        found = None
        with contextlib.suppress(Failure, OSError):  # not ours to read, so not ours to use
            found = read(Path(line.read_text(encoding="utf-8")))
        if found is not None:
            yield found
        else:
            line.unlink(missing_ok=True)


@contextlib.contextmanager
def announced(running: Running, *, to_user: bool = True) -> Iterator[None]:
    """Keep the record while the body runs. `to_user=False` leaves the per-user directory alone (tests)."""
    record = Path(running.data_dir) / RECORD
    line = _state_directory() / f"{hashlib.sha256(running.data_dir.encode()).hexdigest()[:16]}.path"
    _place(record, json.dumps(asdict(running), indent=2))
    if to_user:
        line.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _place(line, running.data_dir)
    try:
        yield
    finally:
        record.unlink(missing_ok=True)
        if to_user:
            line.unlink(missing_ok=True)


def start_time(pid: int) -> str | None:
    """Of a living process, in clock ticks since boot; "" on systems without /proc; None: there is no such process."""
    if sys.platform != "linux":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return ""
        return ""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()[19]  # proc_pid_stat(5): field 22; the name in field 2 may hold spaces


def _the_one(found: list[Running]) -> Running:
    if len(found) == 1:
        return found[0]
    if not found:
        raise Failure(
            "no running instance was found",
            do="Start one with `paddock up`, or name its stores in PADDOCK_DATABASE_URL and PADDOCK_REDIS_URL.",
        )
    here = Path.cwd()
    below = [one for one in found if Path(one.data_dir).is_relative_to(here)]
    if len(below) == 1:
        return below[0]
    raise Failure(
        "several instances run",
        quote="\n".join(f"{one.url}  {one.data_dir}" for one in found),
        do="Say which one with --data-dir.",
    )


def _of(running: Running) -> Stores:
    return Stores(running.database_url, running.redis_url, running)


def _state_directory() -> Path:
    """XDG_RUNTIME_DIR is not used: it is unset under sudo, cron and in containers."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "paddock" / "running"


def _place(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    fresh.rename(path)
