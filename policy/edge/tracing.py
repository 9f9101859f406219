"""Traces of what a request waits for, in either service: one span a call from Envoy, one for each store it asked.

Envoy starts a trace or joins the client's, and decides whether it is kept; its W3C context comes with each gRPC call. A
call without one, or whose trace is not kept, makes no span. Nothing here is imported while tracing is off, and while it
is on, nobody waits for it: spans go into a bounded queue, from which a thread of the SDK sends them.

A span says names and figures that metrics and the access log say too: endpoint, decision, tenant, model, tokens. It
never has a header, a body, an address or an exception's text, for those may quote what a client sent.
"""

from __future__ import annotations

import contextlib
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import grpc.aio
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from policy.edge.otlp import JsonExporter
from policy.rules.endpoints import PATHS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span


FLUSH_MILLIS = 1000
KEPT_MAX = 10_000  # exchanges whose settlement is still to come; past them a settlement has no span

_span: ContextVar[Span | None] = ContextVar("span", default=None)
_CALLS = ("Check", "Process")


class Decisions(Protocol):
    """Is told of each decision."""

    def decided(self, endpoint: str, reason: str, seconds: float) -> None: ...
    def signalled(self, signal: str) -> None: ...


class Observe(Protocol):
    """Hears of the end of a call to a store; `seconds` is what it took."""

    def __call__(self, store: str, operation: str, seconds: float, *, failed: bool = False) -> None: ...


class Tracing:
    """The spans of one process."""

    def __init__(self, service: str, exporter: SpanExporter) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service}),
            sampler=ParentBased(ALWAYS_OFF),
            span_limits=SpanLimits(max_span_attribute_length=200),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=FLUSH_MILLIS))
        self._tracer = self._provider.get_tracer("paddock")
        self._kept: dict[str, Span] = {}

    @classmethod
    def to(cls, url: str, service: str) -> Tracing:
        """Spans of `service` for the collector at `url` (`policy.rules.settings.otlp_url`)."""
        return cls(service, JsonExporter(url))

    def close(self) -> None:
        """Send what is left; some seconds at most. It blocks."""
        self._provider.shutdown()

    def interceptor(self) -> grpc.aio.ServerInterceptor:
        """Puts a span around each call of a server."""
        return _Calls(self)

    @contextlib.contextmanager
    def call(self, name: str, traceparent: str) -> Iterator[None]:
        """A span around what is done for Envoy, whose own span is the parent."""
        parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
        if not trace.get_current_span(parent).get_span_context().trace_flags.sampled:
            yield
            return
        # Without `record_exception`: an exception's text may quote what a client sent.
        span = self._tracer.start_span(name, parent, trace.SpanKind.SERVER, record_exception=False)
        with _inside(span):
            try:
                yield
            finally:
                span.end()

    def observe(self, also: Observe) -> Observe:
        """An observer of stores that makes spans of the calls it hears of, and tells `also`."""

        def called(store: str, operation: str, seconds: float, *, failed: bool = False) -> None:
            also(store, operation, seconds, failed=failed)
            parent = _span.get()
            if parent is None:
                return
            end = time.time_ns()
            span = self._tracer.start_span(
                f"{store} {operation}",
                trace.set_span_in_context(parent),
                trace.SpanKind.CLIENT,
                {"db.system.name": store, "db.operation.name": operation},
                start_time=end - int(seconds * 1e9),
            )
            if failed:
                span.set_status(trace.StatusCode.ERROR)
            span.end(end)

        return called

    @staticmethod
    def decisions(observer: Decisions) -> Decisions:
        """An observer of decisions that notes them on the span, and tells `observer`."""
        return _TracedDecisions(observer)

    @staticmethod
    def note(**attributes: str | int) -> None:
        """Attributes for the span of the call under way: `paddock.NAME`."""
        span = _span.get()
        if span is not None:
            for name, value in attributes.items():
                span.set_attribute(f"paddock.{name}", value)

    def keep(self, request_id: str) -> None:
        """The settlement of this request may come when its call is over: it belongs to the same trace."""
        span = _span.get()
        if span is not None and len(self._kept) < KEPT_MAX:
            self._kept[request_id] = span

    async def again(self, request_id: str, work: Awaitable[str]) -> str:
        """`work` as a part of the request that was kept; one that fails may be tried again."""
        with _inside(self._kept.get(request_id) or _span.get()):
            done = await work
        self._kept.pop(request_id, None)
        return done


class _TracedDecisions:
    """Notes what policy decided, and tells `observer`."""

    def __init__(self, observer: Decisions) -> None:
        self._observer = observer
        self.signalled = observer.signalled

    def decided(self, endpoint: str, reason: str, seconds: float) -> None:
        self._observer.decided(endpoint, reason, seconds)
        Tracing.note(endpoint=endpoint if endpoint in PATHS else "other", decision=reason)


@contextlib.contextmanager
def _inside(span: Span | None) -> Iterator[None]:
    token = _span.set(span)
    try:
        yield
    finally:
        _span.reset(token)


class _Calls(grpc.aio.ServerInterceptor):
    """Around Check and Process; the access log's stream has no request of its own."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        name = details.method.lstrip("/")
        if handler is None or name.rpartition("/")[2] not in _CALLS:
            return handler
        sent = dict(details.invocation_metadata).get("traceparent", "")
        if not isinstance(sent, str) or not sent:
            return handler
        call, made = self._tracing.call, handler

        async def one(request: Any, context: Any) -> Any:
            with call(name, sent):
                return await made.unary_unary(request, context)

        async def stream(requests: AsyncIterator[Any], context: Any) -> None:
            with call(name, sent):
                await made.stream_stream(requests, context)

        as_before = (handler.request_deserializer, handler.response_serializer)
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(stream, *as_before)
        return grpc.unary_unary_rpc_method_handler(one, *as_before)
