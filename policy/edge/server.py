"""The gRPC front of policy: ext_authz checks and the access log, in one grpc.aio server.

The loop here knows codecs and nothing of rules: a message becomes our own value, the evaluator answers, the answer
becomes a message. `policy.edge.http_check` answers the same checks over HTTP, which is what the shipped Envoy asks by.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import grpc.aio

from policy.edge import access_log, check
from policy.edge.verdict import decide

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from policy.edge.verdict import Judge, Observer
    from policy.rules.events import Finished, Progress


AT_ONCE = 16  # entries read before checks have their turn: a busy Envoy's message holds a hundred


class Journal(Protocol):
    """Takes down finished requests."""

    async def write(self, entries: Iterable[Finished]) -> list[Finished]: ...
    async def renew(self, progress: Iterable[Progress]) -> None: ...


class EdgeObserver(Protocol):
    """Is told why Envoy refused a request by itself."""

    def refused_at_edge(self, reason: str) -> None: ...


class Authorization:
    """envoy.service.auth.v3.Authorization."""

    def __init__(self, judge: Judge, observer: Observer) -> None:
        self._judge = judge
        self._observer = observer

    async def check(self, message: Any, _context: object) -> Any:
        request = check.request_from(message)
        return check.response_to(await decide(self._judge, self._observer, request), request)


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
            entries = []
            for entry in access_log.entries(message):
                entries.append(entry)
                if len(entries) % AT_ONCE == 0:
                    await asyncio.sleep(0)
            news = await self._journal.write(entries)
            await self._journal.renew(access_log.progress(message))
            for entry in news:
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
