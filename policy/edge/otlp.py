"""Spans on their way to a collector: OTLP over HTTP, in JSON, one POST a batch (OTLP specification 1.x, "OTLP/HTTP").

The encoder is ours, and the client httpx: the SDK's own exporters bring protobuf messages under names that
`xds-protos`, which the codecs need, installs as well. It runs on the thread of the SDK's batches, never on the event
loop. A collector that does not answer costs spans and nothing else; that is told once, not at every batch.

What leaves here was put on a span by `policy.edge.tracing`; should a secret be among it all the same, it is cut as in
logs. Trace state is what a client wrote: it is left out.
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING

import httpx
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from policy.rules.logs import redact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

log = logging.getLogger(__name__)

POST_SECONDS = 5.0
Node = dict[str, object]


class JsonExporter(SpanExporter):
    """Sends batches to `url`, which ends in /v1/traces."""

    def __init__(self, url: str) -> None:
        verify = ssl.create_default_context() if url.startswith("https:") else False  # the system's authorities
        self._url = url
        self._client = httpx.Client(trust_env=False, timeout=POST_SECONDS, verify=verify)
        self._taken = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """One batch; it never raises."""
        try:
            answer = self._client.post(self._url, json=document(spans))
            fault = "" if answer.is_success else f"status {answer.status_code}"
        except httpx.HTTPError as error:
            fault = type(error).__name__
        if fault and self._taken:
            log.warning("spans not taken", extra={"fault": fault})
        self._taken = not fault
        return SpanExportResult.FAILURE if fault else SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._client.close()


def document(spans: Sequence[ReadableSpan]) -> Node:
    """An ExportTraceServiceRequest. All spans of a process have one resource."""
    resource = spans[0].resource.attributes if spans else {}
    scope = {"scope": {"name": "paddock"}, "spans": [_span(span) for span in spans]}
    return {"resourceSpans": [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope]}]}


def _span(span: ReadableSpan) -> Node:
    own = span.get_span_context()
    assert own is not None  # noqa: S101  # a span that was started has one
    found: Node = {
        "traceId": f"{own.trace_id:032x}",
        "spanId": f"{own.span_id:016x}",
        "name": span.name,
        "kind": span.kind.value + 1,  # OTLP counts from "unspecified"
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes or {}),
        "status": {"code": span.status.status_code.value},
    }
    if span.parent is not None:
        found["parentSpanId"] = f"{span.parent.span_id:016x}"
    return found


def _attributes(attributes: Mapping[str, object]) -> list[Node]:
    return [{"key": name, "value": _value(value)} for name, value in attributes.items()]


def _value(value: object) -> Node:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}  # 64 bits are a string in protobuf's JSON
    return {"stringValue": redact(str(value))}
