"""A small OTLP/HTTP receiver: keeps the spans that it is sent, in protobuf (Envoy's) or JSON (ours)."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2


@dataclass(frozen=True)
class Span:
    service: str
    trace: str
    id: str
    parent: str
    name: str
    begun: int  # ns
    ended: int
    attributes: dict[str, str]


class Collector:
    """Listens from `start` on, on the port it had before where it had one."""

    def __init__(self) -> None:
        self.port = 0
        self.bodies: list[bytes] = []
        self.spans: list[Span] = []
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> Self:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self._body()
                assert self.path == "/v1/traces"
                collector.bodies.append(body)
                read = _from_json if self.headers["content-type"] == "application/json" else _from_protobuf
                collector.spans += read(body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.send_header("connection", "close")  # or a stopped server would go on with connections it has
                self.end_headers()

            def _body(self) -> bytes:
                if "content-length" in self.headers:
                    return self.rfile.read(int(self.headers["content-length"]))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def of(self, trace: str) -> list[Span]:
        return [span for span in self.spans if span.trace == trace]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _from_json(body: bytes) -> list[Span]:
    found = []
    for resource in json.loads(body)["resourceSpans"]:
        service = _attributes(resource["resource"]["attributes"])["service.name"]
        for one in (span for scope in resource["scopeSpans"] for span in scope["spans"]):
            begun, ended = int(one["startTimeUnixNano"]), int(one["endTimeUnixNano"])
            parent, attributes = one.get("parentSpanId", ""), _attributes(one["attributes"])
            found.append(Span(service, one["traceId"], one["spanId"], parent, one["name"], begun, ended, attributes))
    return found


def _attributes(given: list[dict[str, Any]]) -> dict[str, str]:
    return {one["key"]: str(next(iter(one["value"].values()))) for one in given}


def _from_protobuf(body: bytes) -> list[Span]:
    found = []
    request = trace_service_pb2.ExportTraceServiceRequest  # type: ignore[attr-defined]  # made at run time
    for resource in request.FromString(body).resource_spans:
        service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
        # The messages at hand are older than Envoy's: `scope_spans` had another name, and the same number.
        for one in (span for scope in resource.instrumentation_library_spans for span in scope.spans):
            attributes = {a.key: a.value.string_value for a in one.attributes}
            ids = one.trace_id.hex(), one.span_id.hex(), one.parent_span_id.hex()
            found.append(Span(service, *ids, one.name, one.start_time_unix_nano, one.end_time_unix_nano, attributes))
    return found
