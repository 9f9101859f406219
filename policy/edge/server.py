"""The gRPC front of policy: ext_authz checks and the access log, in one grpc.aio server.

The loop here knows codecs and nothing of rules: a message becomes our own value, the evaluator answers, the answer
becomes a message. A fault that nobody foresaw is logged without the request's content and answered with 503: Envoy is
configured to fail closed, and so are we.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import grpc.aio

from policy.edge import access_log, check
from policy.rules.decision import Answer, Deny, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from policy.rules.decision import Allow, Request
    from policy.rules.events import Finished, Progress

log = logging.getLogger(__name__)


class Judge(Protocol):
    """Admits or refuses a request."""

    async def check(self, request: Request) -> Allow | Deny | Answer: ...


class Journal(Protocol):
    """Takes down finished requests."""

    async def write(self, entries: Iterable[Finished]) -> None: ...
    async def renew(self, progress: Iterable[Progress]) -> None: ...


class Observer(Protocol):
    """Is told of each decision and how long it took, in seconds."""

    def decided(self, endpoint: str, reason: str, seconds: float) -> None: ...
    def signalled(self, signal: str) -> None: ...


class EdgeObserver(Protocol):
    """Is told why Envoy refused a request by itself."""

    def refused_at_edge(self, reason: str) -> None: ...


class Authorization:
    """envoy.service.auth.v3.Authorization."""

    def __init__(self, judge: Judge, observer: Observer) -> None:
        self._judge = judge
        self._observer = observer

    async def check(self, message: Any, _context: object) -> Any:
        begun = time.perf_counter()
        request = check.request_from(message)
        try:
            decision = await self._judge.check(request)
        except Exception as fault:  # the last net: whatever went wrong, the gate stays shut
            log.error("check failed", extra={**_place(fault), "request_id": request.request_id})
            decision = Deny(Reason.FAULT)
        if isinstance(decision, Deny):
            endpoint, reason = decision.endpoint, decision.reason.value
        elif isinstance(decision, Answer):
            endpoint, reason = decision.endpoint, "allowed"
        else:
            for signal in decision.signals:
                self._observer.signalled(signal)
            endpoint, reason = decision.grant.endpoint if decision.grant else request.path, "allowed"
        self._observer.decided(endpoint, reason, time.perf_counter() - begun)
        return check.response_to(decision, request)


class AccessLog:
    """envoy.service.accesslog.v3.AccessLogService. Each message is written before the next is read."""

    def __init__(self, journal: Journal, observer: EdgeObserver) -> None:
        self._journal = journal
        self._observer = observer
        self._closing = False
        self._reads: set[asyncio.Timeout] = set()

    def close(self) -> None:
        """End every stream after the message in hand. Envoy keeps such a stream for ever and opens another elsewhere:
        a shutdown that waited for its end would wait in vain."""
        self._closing = True
        for read in self._reads:
            read.reschedule(0)

    async def stream(self, messages: AsyncIterator[Any], _context: object) -> Any:
        async for message in self._until_closed(messages):
            entries = list(access_log.entries(message))
            await self._journal.write(entries)
            await self._journal.renew(access_log.progress(message))
            for entry in entries:
                if entry.edge_reason:
                    self._observer.refused_at_edge(entry.edge_reason)
        return access_log.StreamAccessLogsResponse()

    async def _until_closed(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        incoming = aiter(messages)
        while not self._closing:
            try:
                async with asyncio.timeout(None) as read:
                    self._reads.add(read)
                    try:
                        message = await anext(incoming)
                    finally:
                        self._reads.discard(read)
            except (TimeoutError, StopAsyncIteration):
                return
            yield message


def handlers(authorization: Authorization, log_service: AccessLog) -> tuple[grpc.GenericRpcHandler, ...]:
    """Both services as generic handlers, with the C messages' own (de)serializers."""
    return (
        grpc.method_handlers_generic_handler(
            "envoy.service.auth.v3.Authorization",
            {
                "Check": grpc.unary_unary_rpc_method_handler(
                    authorization.check, check.CheckRequest.FromString, check.CheckResponse.SerializeToString
                )
            },
        ),
        grpc.method_handlers_generic_handler(
            "envoy.service.accesslog.v3.AccessLogService",
            {
                "StreamAccessLogs": grpc.stream_unary_rpc_method_handler(
                    log_service.stream,
                    access_log.StreamAccessLogsMessage.FromString,
                    access_log.StreamAccessLogsResponse.SerializeToString,
                )
            },
        ),
    )


def _place(fault: BaseException) -> dict[str, str]:
    """The fault's type and place, without its message: a message may quote what a client sent."""
    frames = traceback.extract_tb(fault.__traceback__)[-3:]
    return {"fault": type(fault).__name__, "at": " < ".join(f"{f.name}:{f.lineno}" for f in reversed(frames))}
