"""Scripted services around Envoy: an HTTP server, policy's and processor's gRPC ends.

They are not the gateway's: they record what Envoy says and answer what a test tells them, so that a test shows one
behaviour of the configuration and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envoy.config.core.v3 import base_pb2
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from envoy.service.ext_proc.v3 import external_processor_pb2, external_processor_pb2_grpc
from google.protobuf import json_format
from google.rpc import status_pb2

from policy.edge import http_codec

if TYPE_CHECKING:
    from policy.edge.http_check import Respond

Mode = processing_mode_pb2.ProcessingMode
Message = Any  # xds-protos has no type stubs
Stream = AsyncIterator[Message]


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
    """A small HTTP/1.1 server: records each request, answers by `answer`, and notices when its client hangs up."""

    def __init__(self) -> None:
        self.open: set[asyncio.StreamWriter] = set()
        self.reset()

    def reset(self) -> None:
        self.seen: list[Seen] = []
        self.hung_up = threading.Event()
        self.answer: Callable[[Seen, asyncio.StreamWriter], Awaitable[None]] = plain

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        try:
            while request := await _read(reader):
                self.seen.append(request)
                answering = asyncio.ensure_future(self.answer(request, writer))
                gone = asyncio.ensure_future(reader.read(1))  # nobody pipelines here: only an end can come
                await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    self.hung_up.set()
                    answering.cancel()
                    return
                gone.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await gone
                await answering
        except (ConnectionError, asyncio.IncompleteReadError):
            self.hung_up.set()
        finally:
            self.open.discard(writer)
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


async def plain(_request: Seen, writer: asyncio.StreamWriter) -> None:
    """200 with a small JSON body."""
    await reply(writer, 200, b'{"done":true}', content_type="application/json")


async def reply(writer: asyncio.StreamWriter, status: int, body: bytes, **headers: str) -> None:
    lines = [f"HTTP/1.1 {status} x", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    await writer.drain()


async def begin_stream(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 x\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n")
    await writer.drain()


async def send_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
    await writer.drain()


def header(name: str, value: str, *, raw: bool = False) -> Message:
    """ext_authz reads `value`, ext_proc reads `raw_value`; each ignores the other."""
    field: dict[str, Any] = {"raw_value": value.encode()} if raw else {"value": value}
    return base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(key=name, **field),
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def allow(_check: Message = None, **metadata: str) -> Message:
    answer = external_auth_pb2.CheckResponse(status=status_pb2.Status(code=0))
    answer.ok_response.SetInParent()
    answer.dynamic_metadata.update(metadata or {"grant": "{}"})
    return answer


def deny(status: int, body: str, **metadata: str) -> Message:
    answer = external_auth_pb2.CheckResponse(status=status_pb2.Status(code=7))
    answer.denied_response.status.code = status
    answer.denied_response.body = body
    answer.denied_response.headers.append(header("content-type", "application/json"))
    answer.dynamic_metadata.update(metadata)
    return answer


class PolicyEnd(external_auth_pb2_grpc.AuthorizationServicer, als_pb2_grpc.AccessLogServiceServicer):  # type: ignore[misc]  # no stubs
    """ext_authz and the access log service."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.checks: list[Message] = []
        self.logged: list[dict[str, Any]] = []
        self.answer: Callable[[Message], Message] = allow
        self.seconds = 0.0  # that each answer takes

    async def Check(self, request: Message, _context: object) -> Message:
        self.checks.append(request)
        await asyncio.sleep(self.seconds)
        return self.answer(request)

    async def StreamAccessLogs(self, stream: Stream, _context: object) -> Message:
        async for message in stream:
            for entry in message.http_logs.log_entry:
                self.logged.append(json_format.MessageToDict(entry, preserving_proto_field_name=True))
        return als_pb2.StreamAccessLogsResponse()

    def log_of(self, request_id: str) -> dict[str, Any] | None:
        """The entry of the finished request: of one that takes long, Envoy tells in between too."""
        ended = (one for one in self.logged if one["common_properties"].get("access_log_type") != "DownstreamPeriodic")
        return next((one for one in ended if _request_id(one) == request_id), None)


def over_http(policy: PolicyEnd) -> Respond:
    """The same scripted end for checks over HTTP: to it and to its tests they look like those over gRPC."""

    async def respond(method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
        request = http_codec.request_from(method, target, headers, body)
        message = external_auth_pb2.CheckRequest()
        attributes = message.attributes
        attributes.request.time.FromMicroseconds(request.started_at)
        attributes.source.address.socket_address.address = request.address
        http = attributes.request.http
        http.method, http.path, http.raw_body = method, target, body
        http.headers.update(request.headers)
        answer = await policy.Check(message, None)
        metadata = [(name, field.string_value) for name, field in answer.dynamic_metadata.fields.items()]
        if answer.status.code == 0:
            return http_codec.reply(200, metadata + _pairs(answer.ok_response.response_headers_to_add))
        denied = answer.denied_response
        headers_and_metadata = metadata + _pairs(denied.headers)
        return http_codec.refusal(method, denied.status.code, headers_and_metadata, denied.body.encode())

    return respond


def _pairs(options: Message) -> list[tuple[str, str]]:
    return [(option.header.key, option.header.value) for option in options]


def _request_id(entry: dict[str, Any]) -> str | None:
    found: str | None = entry["request"].get("request_id") or entry["response"]["response_headers"]["x-request-id"]
    return found


Step = Callable[[Message], Message | None]


def script(
    *,
    request_body: int = Mode.NONE,
    response_headers: int = Mode.SEND,
    response_body: int = Mode.STREAMED,
    steps: dict[str, Step] | None = None,
) -> Callable[[Stream], Stream]:
    """A processor that asks for these phases; where `steps` has one for a phase it answers, else the phase passes."""
    own = steps or {}

    async def run(stream: Stream) -> Stream:
        async for request in stream:
            phase = request.WhichOneof("request")
            if (step := own.get(phase)) and (answer := step(request)) is not None:
                yield answer
                continue
            answer = external_processor_pb2.ProcessingResponse()
            getattr(answer, phase).response.SetInParent()
            if phase == "request_headers":
                answer.mode_override.CopyFrom(
                    Mode(
                        request_header_mode=Mode.SEND,
                        request_body_mode=request_body,
                        response_header_mode=response_headers,
                        response_body_mode=response_body,
                    )
                )
            yield answer

    return run


async def look_and_leave(stream: Stream) -> Stream:
    """Answer the request headers and end: the rest of the exchange passes by."""
    async for _ in stream:
        answer = external_processor_pb2.ProcessingResponse()
        answer.request_headers.response.SetInParent()
        yield answer
        return


def immediate(status: int, body: bytes, details: str) -> Step:
    def step(_request: Message) -> Message:
        answer = external_processor_pb2.ProcessingResponse()
        answer.immediate_response.status.code = status
        answer.immediate_response.body = body
        answer.immediate_response.details = details
        answer.immediate_response.headers.set_headers.append(header("content-type", "application/json", raw=True))
        return answer

    return step


class ProcessorEnd(external_processor_pb2_grpc.ExternalProcessorServicer):  # type: ignore[misc]  # no stubs
    """ext_proc: `phases` lists the messages of all exchanges, `ended` how each exchange ended."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.requests: list[Message] = []
        self.ended: list[str] = []
        self.process: Callable[[Stream], Stream] = look_and_leave

    @property
    def phases(self) -> list[str]:
        return [request.WhichOneof("request") for request in self.requests]

    async def Process(self, stream: Stream, _context: object) -> Stream:
        async def noted() -> Stream:
            async for request in stream:
                self.requests.append(request)
                yield request

        try:
            async for answer in self.process(noted()):
                yield answer
            self.ended.append("end")
        except BaseException as end:
            self.ended.append(type(end).__name__)
            raise
