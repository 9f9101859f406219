"""Real Envoy with the shipped configuration, between a client and scripted services."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import httpx
from envoy.service.accesslog.v3 import als_pb2_grpc
from envoy.service.auth.v3 import external_auth_pb2_grpc
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc

from gateway.envoy_config import Address, Config, Rate, adapt, write
from policy.edge.http_check import HttpChecks
from policy.edge.http_server import bind
from tests.edge.services import HttpServer, PolicyEnd, ProcessorEnd, over_http

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

T = TypeVar("T")
SHIPPED = Path(__file__).parents[2] / "envoy"
ENVOY = Path(sys.executable).parent / "envoy"
UNLIMITED = Rate(per_second=100_000, burst=100_000)


class Loop:
    """An event loop in a thread of its own, for the services."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        async def cancel() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(cancel())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Rig:
    def __init__(
        self,
        directory: Path,
        *,
        max_body: int = 262144,
        rate: Rate | None = UNLIMITED,
        hosts: int = 1,
        grpc_checks: bool = False,
    ) -> None:
        self.grpc_checks = grpc_checks
        self.directory = directory
        self.max_body = max_body
        self.rate = rate
        self.loop = Loop()
        self.upstream = HttpServer()  # one record for all hosts
        self.pages = HttpServer()
        self.policy = PolicyEnd()
        self.processor = ProcessorEnd()
        self.log = directory / "envoy.log"
        self._servers: dict[str, Any] = {}
        self._listening: list[asyncio.Server] = []
        self._number_of_hosts = hosts

    def begin(self) -> None:
        self.start("policy")
        self.start("processor")
        self.ports = [self._listen(self.upstream) for _ in range(self._number_of_hosts)]
        self._listening.append(
            self.loop.run(asyncio.start_unix_server(self.pages.connection, self.directory / "policy_http.sock"))
        )
        self.start_envoy()

    # The services.

    def start(self, name: str) -> None:
        """Start `policy` or `processor`, on the socket that it always has."""

        async def begin() -> Any:
            server = grpc.aio.server(options=[("grpc.max_receive_message_length", 18 * 1_048_576)])
            if name == "policy":
                external_auth_pb2_grpc.add_AuthorizationServicer_to_server(self.policy, server)
                als_pb2_grpc.add_AccessLogServiceServicer_to_server(self.policy, server)
            else:
                external_processor_pb2_grpc.add_ExternalProcessorServicer_to_server(self.processor, server)
            server.add_insecure_port(f"unix:{self.directory}/{name}.sock")
            await server.start()
            if name == "policy":
                checks = HttpChecks(over_http(self.policy), 18 * 1_048_576)
                self._checks = await checks.start(bind(f"unix:{self.directory}/policy_edge.sock"))
            return server

        self._servers[name] = self.loop.run(begin())

    def stop(self, name: str) -> None:
        """Stop it as a crash would: connections break, calls are not finished."""
        server = self._servers.pop(name)

        async def end() -> None:
            if name == "policy":
                await self._checks.stop(0)
            await server.stop(None)

        self.loop.run(end())

    def stop_host(self, index: int) -> None:
        """Nobody listens on this Ollama's port any more, and its connections are gone."""
        self._close(self._listening[index])

        async def abort() -> None:
            for writer in list(self.upstream.open):
                if writer.get_extra_info("sockname")[1] == self.ports[index]:
                    writer.transport.abort()

        self.loop.run(abort())

    def _listen(self, server: HttpServer) -> int:
        listening = self.loop.run(asyncio.start_server(server.connection, "127.0.0.1", 0))
        self._listening.append(listening)
        port: int = listening.sockets[0].getsockname()[1]
        return port

    def _close(self, server: asyncio.Server) -> None:
        async def end() -> None:
            server.close()

        self.loop.run(end())

    # Envoy.

    def address(self, name: str) -> Address:
        return Address(path=str(self.directory / f"{name}.sock"))

    def config(self) -> Config:
        return adapt(
            SHIPPED / "envoy.yaml",
            SHIPPED / "clusters.yaml",
            listen=Address("0.0.0.0", 0),  # noqa: S104  # as shipped: a test calls from an address that is not loopback
            admin=self.address("admin"),
            policy=[self.address("policy")],
            policy_edge=[self.address("policy_edge")],
            policy_http=[self.address("policy_http")],
            processor=[self.address("processor")],
            processor_edge=[self.address("processor_edge")],
            upstreams=[f"http://127.0.0.1:{port}" for port in self.ports],
            max_request_body_bytes=self.max_body,
            address_rate=self.rate,
            metering="processor",  # what these tests are about
            grpc_checks=self.grpc_checks,
        )

    def start_envoy(self) -> None:
        path = write(self.config(), self.directory / "envoy")
        with self.log.open("ab") as log:
            options = ["--disable-hot-restart", "--concurrency", "2", "--log-level", "warn"]
            command = [str(ENVOY), "-c", str(path), *options, "--file-flush-interval-msec", "50"]
            self._envoy = subprocess.Popen(command, stdout=log, stderr=log)
        self.admin = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.directory / "admin.sock")), base_url="http://admin"
        )
        until(self._ready, self.log.read_text)
        listeners = self.admin.get("/listeners?format=json").json()["listener_statuses"]
        self.port: int = listeners[0]["local_address"]["socket_address"]["port_value"]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)

    def _ready(self) -> bool:
        assert self._envoy.poll() is None, self.log.read_text()
        with socket.socket(socket.AF_UNIX) as probe:  # httpx leaves its socket open where nobody listens yet
            if probe.connect_ex(str(self.directory / "admin.sock")):
                return False
        return self.admin.get("/ready").status_code == 200

    def healthy(self, cluster: str) -> int:
        return self.stat(f"cluster.{cluster}.membership_healthy")

    def stat(self, name: str) -> int:
        text = self.admin.get("/stats", params={"filter": f"^{name}$"}).text
        return int(text.split(":")[1]) if text.strip() else 0

    def access_log(self) -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return [line for line in lines if "status" in line]

    def complaints(self) -> str:
        """What Envoy says of itself: text before it has read its configuration, JSON after."""
        return "\n".join(line for line in self.log.read_text().splitlines() if '"status":' not in line)

    # The client's side, where httpx would tidy up what is sent.

    def connect(self, host: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection((host, self.port), timeout=20)

    def raw(self, request: bytes, host: str = "127.0.0.1") -> httpx.Response:
        """Send these bytes; the one response to them."""
        with self.connect(host) as connection:
            connection.sendall(request)
            answer = b""
            while not _complete(answer, head_only=request.startswith(b"HEAD ")):
                piece = connection.recv(65536)
                if not piece:
                    break
                answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        return httpx.Response(int(first.split(" ")[1]), headers=headers, content=body)

    def ask(self, target: str, method: str = "GET", *headers: str, host: str = "127.0.0.1") -> httpx.Response:
        """A request whose target is sent as it is written."""
        lines = [f"{method} {target} HTTP/1.1", "host: gateway.example", *headers]
        return self.raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n", host)

    def reset(self) -> None:
        for service in (self.upstream, self.pages, self.policy, self.processor):
            service.reset()

    def close(self) -> None:
        if hasattr(self, "_envoy"):
            self._envoy.kill()
            self._envoy.wait()
            self.admin.close()
        if hasattr(self, "client"):
            self.client.close()
        for name in list(self._servers):
            self.stop(name)
        for server in self._listening:
            self._close(server)
        self.loop.close()


def _complete(answer: bytes, *, head_only: bool) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    return head_only or (b"content-length" in fields and len(body) >= int(fields[b"content-length"]))


def until(true: Callable[[], Any], say: Callable[[], object] = lambda: "", seconds: float = 30) -> Any:
    """Wait for what another process does: it has no event to wait for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := true():
            return result
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {say()}")


@contextlib.contextmanager
def running(
    *, max_body: int = 262144, rate: Rate | None = UNLIMITED, hosts: int = 1, grpc_checks: bool = False
) -> Iterator[Rig]:
    # Not tmp_path: the path of a Unix socket has 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="rig") as directory:
        rig = Rig(Path(directory), max_body=max_body, rate=rate, hosts=hosts, grpc_checks=grpc_checks)
        try:
            rig.begin()
            yield rig
        finally:
            rig.close()
