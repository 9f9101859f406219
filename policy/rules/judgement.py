"""The judgement on a request's cost: plan what to count, and judge what the store counted.

`Plan` goes to the counter store, which decides and reserves in one atomic step; `Tally` comes back. Both ends are pure,
so the rule "the tightest binds" and the seven headers of the reference are read and tested without any store.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from policy.rules.decision import Deny, Reason

if TYPE_CHECKING:
    from policy.rules.limits import Limits
    from policy.rules.sessions import Scope
    from policy.rules.tenants import Key
    from policy.rules.tiers import Tier

BUDGET_PERIODS = ("day", "month", "total")
UNLIMITED = "unlimited"  # what a header says where no limit is set


class Mode(StrEnum):
    """How a request counts."""

    RESERVE = "reserve"  # requests, concurrency, tokens: a generation
    COUNT = "count"  # requests only: lists, /api/show
    DENY = "deny"  # refused for what it asks: it still counts as a request of its key


@dataclass(frozen=True, slots=True)
class Plan:
    """What to count for one request, all of it in one store call."""

    request_id: str
    started_at: int  # microseconds since the epoch
    mode: Mode
    key: Key
    endpoint: str
    model: str = ""
    address: str = ""
    prompt_bytes: int = 0
    cap: int = 0  # completion tokens wanted, all completions together
    explicit: bool = False  # the client named the cap itself: all of it must fit
    completions: int = 1
    reason: Reason | None = None  # with DENY
    scopes: tuple[Scope, ...] = ()  # besides tenant and key
    signature: str = ""  # of the request, to be seen once; see `policy.rules.request_signature`
    counted: bool = False  # among the requests already: its key was checked before its body could be read
    tier: Tier | None = None  # the security tier that the model must be on; None where tiers do not matter


@dataclass(frozen=True, slots=True)
class Figures:
    """One scope as it stood before this request."""

    limits: Limits
    requests: int
    tokens: int
    under_way: int
    day: int
    month: int
    total: int
    open: int  # reserved by requests under way


@dataclass(frozen=True, slots=True)
class Tally:
    """What the store decided. `refused` is None where everything fitted and was reserved."""

    refused: Reason | None
    wait_ms: int
    cap: int
    prompt_tokens: int
    epoch: str
    scopes: tuple[Figures, ...]
    recorded: bool = True  # False: a refusal past the rate, counted without a row of its own


def rate_headers(tally: Tally, *, admitted: bool) -> tuple[tuple[str, str], ...]:
    """The reference's rate and budget headers: of every pair the scope that leaves least.

    This request counts among the requests (`admitted`: the figures do not have it yet); its own token reservation does
    not count, so that "remaining" moves by what was used and not by what might be.
    """
    one = 1 if admitted else 0
    requests = [(f.limits.rpm - f.requests - one, f.limits.rpm) for f in tally.scopes if f.limits.rpm is not None]
    tokens = [(f.limits.tpm - f.tokens - f.open, f.limits.tpm) for f in tally.scopes if f.limits.tpm is not None]
    budgets: list[tuple[int, int]] = []
    for f in tally.scopes:
        bounds = (f.limits.budget_day, f.limits.budget_month, f.limits.budget_total)
        for period, (bound, spent) in enumerate(zip(bounds, (f.day, f.month, f.total), strict=True)):
            if bound is not None:
                budgets.append((bound - spent - f.open, period))
    left, limit = _tightest(requests)
    tokens_left, tokens_limit = _tightest(tokens)
    budget_left, period = min(budgets) if budgets else (None, 2)
    return (
        ("x-ratelimit-limit-requests", limit),
        ("x-ratelimit-remaining-requests", left),
        ("x-ratelimit-limit-tokens", tokens_limit),
        ("x-ratelimit-remaining-tokens", tokens_left),
        ("x-budget-period", BUDGET_PERIODS[period]),
        ("x-budget-tokens-remaining", UNLIMITED if budget_left is None else str(max(budget_left, 0))),
    )


def _tightest(pairs: list[tuple[int, int]]) -> tuple[str, str]:
    if not pairs:
        return UNLIMITED, UNLIMITED
    left, limit = min(pairs)
    return str(max(left, 0)), str(limit)


def judge(plan: Plan, tally: Tally) -> Deny | None:
    """The refusal that the tally calls for, with its headers and the true wait; None where the request may go on."""
    reason = tally.refused or plan.reason
    if reason is None:
        return None
    wait = max(1, -(-tally.wait_ms // 1000)) if tally.refused and tally.wait_ms else None
    return Deny(
        reason,
        headers=rate_headers(tally, admitted=tally.refused is None and not plan.counted),
        retry_after=wait,
        tenant=plan.key.tenant.name,
        tenant_id=plan.key.tenant.id,
        key_id=plan.key.id,
        key_prefix=plan.key.prefix,
        model=plan.model,
        endpoint=plan.endpoint,
        recorded=tally.recorded,
    )
