"""Settlements of what Envoy metered by itself: `POST /settle`, one for each answer, before its last piece passes.

The body has two lines: the grant, as policy gave it, and what the meter in Envoy read (`policy.rules.metering`). 200
says that the counter store has the settlement; anything else, that Envoy's access log has to tell policy once more,
which costs nothing twice. `GET /alive` is how Envoy asks whether there is a processor, before it lets a request go.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from policy.rules.grant import Grant
from policy.rules.metering import reading

if TYPE_CHECKING:
    from policy.rules.settlement import Settlement

log = logging.getLogger(__name__)

SETTLE, ALIVE = "/settle", "/alive"
MAX_BYTES = 64 * 1024  # a grant with its splices, and the figures: a few hundred bytes


class Settler(Protocol):
    """Settles reservations."""

    async def settle(self, grant: Grant, settlement: Settlement) -> bool: ...


class Observer(Protocol):
    """Is told of each finished exchange."""

    def metered(
        self,
        grant: Grant,
        prompt_tokens: int,
        completion_tokens: int,
        *,
        seconds: float,
        first_token: float | None = None,
    ) -> None: ...


class Trace(Protocol):
    """The span of the call under way."""

    def note(self, **attributes: str | int) -> None: ...
    def keep(self, request_id: str) -> None: ...


class Settlements:
    """Takes them down."""

    def __init__(self, settler: Settler, observer: Observer, trace: Trace | None = None) -> None:
        self._settler = settler
        self._observer = observer
        self._trace = trace

    async def take(self, method: str, target: str, body: bytes) -> int:
        """The status of one call."""
        if target == ALIVE:
            return 200
        if method != "POST" or target != SETTLE:
            return 404
        first, _, second = body.partition(b"\n")
        try:
            grant, settlement = Grant.from_json(first.decode()), reading(second)
        except ValueError:
            log.error("not a settlement", extra={"hint": "Envoy's meter and processor must be of one version"})
            return 400
        self._observe(grant, settlement)
        if not grant.epoch:
            return 200  # nothing was reserved
        return 200 if await self._settler.settle(grant, settlement) else 202

    def _observe(self, grant: Grant, settlement: Settlement) -> None:
        prompt = grant.prompt_tokens if settlement.prompt_tokens is None else settlement.prompt_tokens
        if self._trace is not None:
            self._trace.note(
                endpoint=grant.endpoint,
                tenant=grant.tenant,
                model=grant.model,
                outcome=str(settlement.event.get("outcome", "")),
                prompt_tokens=prompt,
                completion_tokens=settlement.completion_tokens,
            )
            self._trace.keep(grant.request_id)
        first = settlement.event.get("ttft")
        self._observer.metered(
            grant,
            prompt,
            settlement.completion_tokens,
            seconds=max(time.time() - grant.started_at / 1e6, 0.0),
            first_token=first / 1e6 if isinstance(first, int) and grant.stream else None,
        )
