"""The data directory of one instance: what lies where, who may use it, what is made on the first start.

secrets/   pepper                                  0700
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
import secrets
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
_LONGEST_SOCKET_NAME = len("/processor-metrics-00.sock")


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
    def secrets(self) -> Path:
        return self.path / "secrets"

    @property
    def pepper(self) -> Path:
        return self.secrets / "pepper"

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
            for name in ("logs", "locks", "secrets", "envoy"):
                (path / name).mkdir(exist_ok=True, mode=0o700)
            home = cls(path, _socket_directory(path))
            home._make_secret(home.pepper)
        except OSError as error:
            raise Failure(
                f"cannot use the data directory {path}: {error.strerror}",
                do="Name another one with --data-dir, or make this one yours.",
            ) from error
        return home

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the directory for this process alone. Failure if another instance holds it."""
        lock = os.open(self.locks / "instance.lock", os.O_RDWR | os.O_CREAT, 0o600)
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
            yield
        finally:
            os.close(lock)

    @staticmethod
    def _make_secret(path: Path) -> None:
        """32 random bytes in hexadecimal, complete or absent: a crash never leaves half a secret."""
        if path.exists():
            return
        fresh = path.with_name(path.name + ".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)


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
