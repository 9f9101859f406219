"""The data directory of one instance: what lies where, and who may use it.

secrets/   the keys of envelopes and their passphrase   0700
postgres/  valkey/                                 the embedded stores
envoy/     the configuration that Envoy runs from
logs/      one file a part, and the starts before
run/       Unix sockets (elsewhere if the path is too long for one), 0700
locks/     one lock a part (`gateway.part`), and the instance's own
running.json   while it runs (`gateway.running`)
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOCKET_PATH_LIMIT = 107  # sockaddr_un.sun_path has 108 bytes, the last one zero
_LONGEST_SOCKET_NAME = len("/policy-http-00.sock")


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below one data directory."""

    path: Path
    run: Path

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def locks(self) -> Path:
        return self.path / "locks"

    @property
    def append_only_files(self) -> Path:
        return self.path / "valkey" / "appendonlydir"

    def socket(self, name: str) -> Path:
        return self.run / f"{name}.sock"

    @classmethod
    def open(cls, path: Path) -> Home:
        """Make what is missing. Failure if the directory cannot be used."""
        path = Path(os.path.abspath(path.expanduser()))
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in ("logs", "locks", "envoy"):
                (path / name).mkdir(exist_ok=True, mode=0o700)
            return cls(path, _socket_directory(path))
        except OSError as error:
            raise _unusable(path, error) from error

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the directory for this process alone. Failure if another instance holds it."""
        try:
            lock = os.open(self.locks / "instance.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _unusable(self.path, error) from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock, 32, 0).decode().strip() or "unknown"
                raise Failure(
                    f"the data directory {self.path} is in use by another instance (process {holder})",
                    do="Stop that one first, or name another directory with --data-dir.",
                ) from None
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            _private(self.run)  # whoever held the directory until now may just have removed it
            try:
                yield
            finally:
                if self.path not in self.run.parents:
                    shutil.rmtree(self.run, ignore_errors=True)  # sockets nobody listens on any more
        finally:
            os.close(lock)


def _unusable(path: Path, error: OSError) -> Failure:
    return Failure(
        f"cannot use the data directory {path}: {error.strerror}",
        do="Name another one with --data-dir, or make this one yours.",
    )


def _socket_directory(data: Path) -> Path:
    """`run/` in the data directory, or a short private directory under the temporary one."""
    here = data / "run"
    if len(os.fsencode(here)) + _LONGEST_SOCKET_NAME <= _SOCKET_PATH_LIMIT:
        return _private(here)
    mark = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
    return _private(Path(tempfile.gettempdir()) / f"paddock-{os.geteuid()}-{mark}")


def _private(directory: Path) -> Path:
    """The directory, ours and closed to others: anyone may have made that name in a shared temporary directory."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise Failure(
            f"{directory} belongs to someone else",
            do="Remove it, or name another data directory with --data-dir.",
        )
    directory.chmod(0o700)
    return directory
