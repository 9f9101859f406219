"""A rig for the shipped Envoy configuration: real Envoy, real gRPC, small services that a test can script.

The services here are not the gateway's: they record what Envoy says and answer what a test tells them, so that each test
shows one behaviour of the YAML and nothing else.
"""

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
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from envoy.service.ext_proc.v3 import external_processor_pb2, external_processor_pb2_grpc
from envoy.type.v3 import http_status_pb2
from google.protobuf import json_format, struct_pb2
from google.rpc import status_pb2

from gateway.envoy_config import Address, Rate, adapt, write

ROOT = Path(__file__).parents[2]
ENVOY = Path(sys.executable).parent / "envoy"
T = TypeVar("T")
Check = external_auth_pb2.CheckRequest
Mode = processing_mode_pb2.ProcessingMode


@dataclass(frozen=True)
class Seen:
    """One request as an HTTP server behind Envoy read it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


class HttpServer:
    """A small HTTP/1.1 server: records each request, answers by `answer`, and knows when its client hung up."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.hung_up = threading.Event()
        self.answer: Callable[[Seen, asyncio.StreamWriter], Awaitable[None]] = plain

    async def serve(self, **where: Any) -> asyncio.AbstractServer:
        if "path" in where:
            return await asyncio.start_unix_server(self._connection, **where)
        return await asyncio.start_server(self._connection, **where)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await _read(reader):
                self.seen.append(request)
                answering = asyncio.ensure_future(self.answer(request, writer))
                watching = asyncio.ensure_future(reader.read(1))
                await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():  # nobody pipelines here: a byte or an end means the client left
                    self.hung_up.set()
                    answering.cancel()
                    return
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    if not await watching:
                        return
                await answering
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.hung_up.set()
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Seen | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.split("\r\n")[:-2]
    method, target, _ = first.split(" ")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    fields = dict(headers)
    body = b""
    if fields.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(fields.get("content-length", "0")))
    return Seen(method, target, headers, body)


async def plain(request: Seen, writer: asyncio.StreamWriter) -> None:
    """200 with a small JSON body."""
    await reply(writer, 200, b'{"done":true}')


async def reply(writer: asyncio.StreamWriter, status: int, body: bytes, *headers: tuple[str, str]) -> None:
    lines = [f"HTTP/1.1 {status} x", f"content-length: {len(body)}", *(f"{k}: {v}" for k, v in headers)]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    await writer.drain()


def allow(check: Check, *, metadata: dict[str, Any] | None = None, **headers: str) -> external_auth_pb2.CheckResponse:
    """Let it pass; `headers` go on to the upstream request."""
    answer = external_auth_pb2.CheckResponse(status=status_pb2.Status(code=0))
    answer.ok_response.headers.extend(option(name.replace("_", "-"), value) for name, value in headers.items())
    answer.dynamic_metadata.CopyFrom(struct(metadata or {"grant": "{}"}))
    return answer


def deny(status: int, body: str, **metadata: str) -> external_auth_pb2.CheckResponse:
    answer = external_auth_pb2.CheckResponse(status=status_pb2.Status(code=7))
    answer.denied_response.status.code = status  # type: ignore[assignment]  # protobuf enums are open
    answer.denied_response.body = body
    answer.denied_response.headers.append(option("content-type", "application/json"))
    answer.dynamic_metadata.CopyFrom(struct(metadata))
    return answer


def option(name: str, value: str) -> base_pb2.HeaderValueOption:
    return base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(key=name, value=value),
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def struct(values: dict[str, Any]) -> struct_pb2.Struct:
    result = struct_pb2.Struct()
    result.update(values)
    return result


class PolicyStub(external_auth_pb2_grpc.AuthorizationServicer, als_pb2_grpc.AccessLogServiceServicer):
    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.logged: list[dict[str, Any]] = []
        self.answer: Callable[[Check], external_auth_pb2.CheckResponse] = allow

    async def Check(self, request: Check, context: object) -> external_auth_pb2.CheckResponse:  # noqa: N802, RUF100  # gRPC names it
        self.checks.append(request)
        return self.answer(request)

    async def StreamAccessLogs(  # noqa: N802, RUF100  # gRPC names it
        self, stream: AsyncIterator[als_pb2.StreamAccessLogsMessage], context: object
    ) -> als_pb2.StreamAccessLogsResponse:
        async for message in stream:
            for entry in message.http_logs.log_entry:
                self.logged.append(json_format.MessageToDict(entry, preserving_proto_field_name=True))
        return als_pb2.StreamAccessLogsResponse()


Process = Callable[
    [AsyncIterator[external_processor_pb2.ProcessingRequest]],
    AsyncIterator[external_processor_pb2.ProcessingResponse],
]


async def passing(
    stream: AsyncIterator[external_processor_pb2.ProcessingRequest],
) -> AsyncIterator[external_processor_pb2.ProcessingResponse]:
    """Look at the request headers and leave."""
    async for _ in stream:
        answer = external_processor_pb2.ProcessingResponse()
        answer.request_headers.response.SetInParent()
        yield answer
        return


class ProcessorStub(external_processor_pb2_grpc.ExternalProcessorServicer):
    def __init__(self) -> None:
        self.phases: list[str] = []
        self.requests: list[external_processor_pb2.ProcessingRequest] = []
        self.ended: list[str] = []
        self.process: Process = passing

    async def Process(
        self, stream: AsyncIterator[external_processor_pb2.ProcessingRequest], context: object
    ) -> AsyncIterator[external_processor_pb2.ProcessingResponse]:
        async def noted() -> AsyncIterator[external_processor_pb2.ProcessingRequest]:
            async for request in stream:
                self.requests.append(request)
                self.phases.append(str(request.WhichOneof("request")))
                yield request

        try:
            async for answer in self.process(noted()):
                yield answer
            self.ended.append("end")
        except BaseException as end:
            self.ended.append(type(end).__name__)
            raise


class Loop:
    """An event loop in a thread of its own, for the services of the rig."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def close(self) -> None:
        async def cancel() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(cancel())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@dataclass
class Rig:
    """Envoy with the shipped configuration between a client and scripted services."""

    directory: Path
    max_body: int = 262144
    rate: Rate | None = field(default_factory=lambda: Rate(100000, 100000))
    hosts: int = 1
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.loop = Loop()
        self.upstream = HttpServer()
        self.pages = HttpServer()
        self.policy = PolicyStub()
        self.processor = ProcessorStub()
        self._policy_server: Any = None
        self._processor_server: Any = None
        self.ports: list[int] = []

    def start(self) -> None:
        self.start_policy()
        self.start_processor()
        self.loop.run(self.pages.serve(path=str(self.directory / "pages.sock")))
        for _ in range(self.hosts):
            server: Any = self.loop.run(self.upstream.serve(host="127.0.0.1", port=0))
            self.ports.append(server.sockets[0].getsockname()[1])
        self.start_envoy()

    def start_policy(self) -> None:
        async def begin() -> Any:
            server = grpc.aio.server(options=[("grpc.max_receive_message_length", self.max_body + 1048576)])
            external_auth_pb2_grpc.add_AuthorizationServicer_to_server(self.policy, server)
            als_pb2_grpc.add_AccessLogServiceServicer_to_server(self.policy, server)
            server.add_insecure_port(f"unix:{self.directory}/policy.sock")
            await server.start()
            return server

        self._policy_server = self.loop.run(begin())

    def stop_policy(self) -> None:
        self.loop.run(self._policy_server.stop(None))

    def start_processor(self) -> None:
        async def begin() -> Any:
            server = grpc.aio.server(options=[("grpc.max_receive_message_length", self.max_body + 1048576)])
            external_processor_pb2_grpc.add_ExternalProcessorServicer_to_server(self.processor, server)
            server.add_insecure_port(f"unix:{self.directory}/processor.sock")
            await server.start()
            return server

        self._processor_server = self.loop.run(begin())

    def stop_processor(self) -> None:
        self.loop.run(self._processor_server.stop(None))

    def start_envoy(self) -> None:
        config = adapt(
            ROOT / "envoy/envoy.yaml",
            ROOT / "envoy/clusters.yaml",
            listen=Address("127.0.0.1", 0),
            admin=Address(path=str(self.directory / "admin.sock")),
            policy=[Address(path=str(self.directory / "policy.sock"))],
            policy_http=[Address(path=str(self.directory / "pages.sock"))],
            processor=[Address(path=str(self.directory / "processor.sock"))],
            upstreams=[f"http://127.0.0.1:{port}" for port in self.ports],
            max_request_body_bytes=self.max_body,
            address_rate=self.rate,
        )
        path = write(config, self.directory / "envoy")
        self.log = self.directory / "envoy.log"
        with self.log.open("ab") as out:
            command = [ENVOY, "-c", path, "--disable-hot-restart", "--concurrency", "2", "--log-level", "warn", "--file-flush-interval-msec", "50"]
            self._envoy = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        self.admin = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.directory / "admin.sock")), base_url="http://admin"
        )
        until(self._ready, lambda: self.log.read_text())
        listeners = self.admin.get("/listeners?format=json").json()
        self.port: int = listeners["listener_statuses"][0]["local_address"]["socket_address"]["port_value"]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)

    def _ready(self) -> bool:
        if self._envoy.poll() is not None:
            raise RuntimeError(self.log.read_text())
        try:
            return self.admin.get("/ready").status_code == 200 and self.stat("cluster.ollama.membership_total") > 0
        except httpx.TransportError:
            return False

    def stat(self, name: str) -> int:
        text = self.admin.get("/stats", params={"filter": f"^{name}$"}).text
        return int(text.split(":")[1]) if text.strip() else 0

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def raw(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send these bytes and read what comes until the connection closes."""
        with self.connect() as connection:
            connection.sendall(request)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(first.split(" ")[1]), headers, body

    def get_raw(self, target: str, method: str = "GET", *headers: str) -> tuple[int, dict[str, str], bytes]:
        """A request whose target is sent as it is written."""
        lines = [f"{method} {target} HTTP/1.1", "host: x", "connection: close", *headers]
        return self.raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")

    def access_log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def close(self) -> None:
        if hasattr(self, "_envoy"):
            self._envoy.kill()
            self._envoy.wait()
            self.client.close()
            self.admin.close()
        self.loop.run(self._policy_server.stop(None))
        self.loop.run(self._processor_server.stop(None))
        self.loop.close()


def until(true: Callable[[], Any], say: Callable[[], object] = lambda: "", seconds: float = 20) -> Any:
    """Wait for a condition that has no event of its own (another process's state)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := true():
            return result
        time.sleep(0.02)
    raise AssertionError(f"did not happen in {seconds} s: {say()}")


@contextlib.contextmanager
def running(**settings: Any) -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="rig") as directory:  # short: a socket's path has 107 characters
        rig = Rig(Path(directory), **settings)
        try:
            rig.start()
            yield rig
        finally:
            rig.close()


@pytest.fixture(scope="module")
def shared_rig() -> Iterator[Rig]:
    with running() as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    """The module's Envoy, with services as new."""
    shared_rig.upstream.__init__()  # type: ignore[misc]  # the same objects stay wired, with fresh records
    shared_rig.pages.__init__()  # type: ignore[misc]
    shared_rig.policy.__init__()  # type: ignore[misc]
    shared_rig.processor.__init__()  # type: ignore[misc]
    return shared_rig
