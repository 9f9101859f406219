"""What processor adds to a trace: what an exchange used, and its settlement, also one that comes after its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from policy.rules.grant import Grant
    from policy.rules.settlement import Settlement
    from processor.edge.server import Observer
    from processor.exchange import Exchange
    from processor.settling import Counters


class Trace(Protocol):
    """The span of the call under way."""

    def note(self, **attributes: str | int) -> None: ...
    def keep(self, request_id: str) -> None: ...
    async def again(self, request_id: str, work: Awaitable[str]) -> str: ...


class TracedExchanges:
    """Notes how an exchange ended, and tells `observer`."""

    def __init__(self, observer: Observer, trace: Trace) -> None:
        self._observer = observer
        self._trace = trace

    def finished(self, exchange: Exchange, settlement: Settlement, seconds: float) -> None:
        self._observer.finished(exchange, settlement, seconds)
        grant = exchange.grant
        prompt = grant.prompt_tokens if settlement.prompt_tokens is None else settlement.prompt_tokens
        self._trace.note(
            endpoint=grant.endpoint,
            tenant=grant.tenant,
            model=grant.model,
            outcome=str(settlement.event.get("outcome", "")),
            prompt_tokens=prompt,
            completion_tokens=settlement.completion_tokens,
        )
        self._trace.keep(grant.request_id)


class TracedCounters:
    """Settlements are part of the trace of what they settle."""

    def __init__(self, counters: Counters, trace: Trace) -> None:
        self._counters = counters
        self._trace = trace

    async def settle(self, grant: Grant, settlement: Settlement) -> str:
        return await self._trace.again(grant.request_id, self._counters.settle(grant, settlement))

    async def renew(self, tenant_shard: int, progress: Iterable[tuple[str, int]]) -> None:
        await self._counters.renew(tenant_shard, progress)

    def shard_of(self, tenant_id: int | None, address: str) -> int:
        return self._counters.shard_of(tenant_id, address)
