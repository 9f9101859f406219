"""One decision, whether Envoy asked over gRPC or over HTTP: the same judge, the same last net, the same count."""

from __future__ import annotations

import logging
import time
import traceback
from typing import TYPE_CHECKING, Protocol

from policy.rules.decision import Answer, Deny, Reason

if TYPE_CHECKING:
    from policy.rules.decision import Allow, Request

log = logging.getLogger(__name__)


class Judge(Protocol):
    """Admits or refuses a request."""

    async def check(self, request: Request) -> Allow | Deny | Answer: ...


class Observer(Protocol):
    """Is told of each decision and how long it took, in seconds."""

    def decided(self, endpoint: str, reason: str, seconds: float) -> None: ...
    def signalled(self, signal: str) -> None: ...


async def decide(judge: Judge, observer: Observer, request: Request) -> Allow | Deny | Answer:
    """The judge's decision. A fault that nobody foresaw is logged without the request's content and is a refusal."""
    begun = time.perf_counter()
    try:
        decision = await judge.check(request)
    except Exception as fault:  # the last net: whatever went wrong, the gate stays shut
        log.error("check failed", extra={**place(fault), "request_id": request.request_id})
        decision = Deny(Reason.FAULT)
    if isinstance(decision, Deny):
        endpoint, reason = decision.endpoint, decision.reason.value
    elif isinstance(decision, Answer):
        endpoint, reason = decision.endpoint, "allowed"
    else:
        for signal in decision.signals:
            observer.signalled(signal)
        endpoint, reason = decision.grant.endpoint if decision.grant else request.path, "allowed"
    observer.decided(endpoint, reason, time.perf_counter() - begun)
    return decision


def place(fault: BaseException) -> dict[str, str]:
    """The fault's type and place, without its message: a message may quote what a client sent."""
    frames = traceback.extract_tb(fault.__traceback__)[-3:]
    return {"fault": type(fault).__name__, "at": " < ".join(f"{f.name}:{f.lineno}" for f in reversed(frames))}
