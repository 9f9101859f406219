"""The counters as a plain model: what the scripts beside this module must do, in the fewest words.

It keeps everything in one process and forgets it at the end. The tests run it beside Redis and compare; where the two
disagree, one of them is wrong. It stores every request and settlement as it happened and sums them up when asked, where
the scripts keep running sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from policy.rules.decision import Reason
from policy.rules.judgement import Figures, Mode, Plan, Tally
from policy.rules.limits import Limits
from policy.rules.settlement import Expired, Identity, Seed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policy.rules.grant import Grant
    from policy.rules.settlement import Known, Settlement

BUCKET_MS = 250
WINDOW_MS = 60_000
LEASE_MS = 15_000
DAY_MS = 86_400_000
SHARDS = 64
UNKNOWN_MS = 1000  # a wait for what may end at any moment
UNUSED = Seed(0, 0, 0, 0, 0)


@dataclass(slots=True)
class Scope:
    """A tenant or a key. `uses` are (when settled, day and month charged for, tokens)."""

    seed: Seed
    requests: list[int] = field(default_factory=list)  # when each came, ms
    uses: list[tuple[int, int, int, int]] = field(default_factory=list)
    open: dict[str, int] = field(default_factory=dict)  # tokens reserved, by request

    def in_window(self, now: int) -> tuple[list[int], list[tuple[int, int]]]:
        first = now // BUCKET_MS * BUCKET_MS - WINDOW_MS + BUCKET_MS
        return [at for at in self.requests if at >= first], [(use[0], use[3]) for use in self.uses if use[0] >= first]

    def used(self, day: int, month: int) -> tuple[int, int, int]:
        """Tokens of this day, of this month, and ever."""
        seed = self.seed
        return (
            sum(use[3] for use in self.uses if use[1] == day) + (seed.day_tokens if seed.day == day else 0),
            sum(use[3] for use in self.uses if use[2] == month) + (seed.month_tokens if seed.month == month else 0),
            sum(use[3] for use in self.uses) + seed.total,
        )


@dataclass(frozen=True, slots=True)
class Reservation:
    """One request under way."""

    identity: Identity
    tokens: int
    prompt: int
    day: int
    month: int
    prompt_bytes: int
    deadline: int
    progress: int = 0


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settlement tells the ledger."""

    request_id: str
    day: int
    month: int
    prompt: int
    completion: int


class MemoryStore:
    """The counter store's model. Set `now` (ms) as time goes by; `lose` is what FLUSHALL does."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.life = 0
        self.events: list[Settled] = []  # of all lives
        self._late: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        self.life += 1
        self.tenants: dict[int, Scope] = {}
        self.keys: dict[int, Scope] = {}
        self.further: dict[tuple[int, str], Scope] = {}  # by tenant and name; here none ends by itself
        self.reservations: dict[str, Reservation] = {}
        self.ratios: dict[tuple[int, str], float] = {}  # by shard and model
        self._late.clear()

    def lose(self) -> None:
        """Everything is gone; a new life begins."""
        self._forget()

    def admit(self, plan: Plan, known: Known | None = None) -> Tally | None:
        """Decide and reserve; None when the scopes must be seeded."""
        limits = [plan.key.tenant.limits]
        places: list[tuple[dict[int, Scope], int]] = [(self.tenants, plan.key.tenant.id)]
        if plan.key.limits != Limits():
            limits.append(plan.key.limits)
            places.append((self.keys, plan.key.counted))
        for i, (scopes, number) in enumerate(places):
            if number not in scopes:
                if known is None:
                    return None
                scopes[number] = Scope((known.tenant, known.key)[i])
        found = [scopes[number] for scopes, number in places]
        over = False
        for extra in plan.scopes:
            scope = self.further.get((plan.key.tenant.id, extra.name))
            if scope is None and extra.keep_ms > 0:
                scope = self.further[plan.key.tenant.id, extra.name] = Scope(UNUSED)
            if scope is None:
                over = True
                break
            found.append(scope)
            limits.append(extra.limits)
        return self._decide(plan, found, limits, over=over)

    def _decide(self, plan: Plan, scopes: list[Scope], limits: list[Limits], *, over: bool) -> Tally:
        now = self.now
        day, month = calendar(now)
        before = self.reservations.pop(plan.request_id, None)
        if before is not None:
            for scope in self._scopes_of(before.identity):
                scope.open.pop(plan.request_id, None)
        reserves = plan.mode is Mode.RESERVE
        prompt = self.estimate(plan.key.tenant.id, plan.model, plan.prompt_bytes) if reserves else 0
        need = prompt + (plan.cap if plan.explicit else min(plan.cap, plan.completions)) if reserves else 0
        refusals: list[tuple[Reason, int]] = []
        lefts: list[int] = []
        figures: list[Figures] = []
        for scope, bounds in zip(scopes, limits, strict=True):
            came, settled = scope.in_window(now)
            requests = max(len(came) - (1 if before and not plan.counted else 0), 0)
            tokens = sum(tokens for _, tokens in settled)
            held = sum(scope.open.values())
            used = scope.used(day, month)
            figures.append(Figures(bounds, requests, tokens, len(scope.open), *used, held))
            if bounds.rpm is not None and not plan.counted and requests + 1 > bounds.rpm:
                arrivals = [(at, 1) for at in came]
                refusals.append((Reason.RATE_REQUESTS, wait(arrivals, requests + 1, bounds.rpm, 1, now)))
            if not reserves:
                continue
            if bounds.concurrency is not None and len(scope.open) + 1 > bounds.concurrency:
                refusals.append((Reason.CONCURRENCY, UNKNOWN_MS))
            if bounds.tpm is not None:
                if tokens + held + need > bounds.tpm:
                    refusals.append((Reason.RATE_TOKENS, wait(settled, tokens + need, bounds.tpm, need, now)))
                lefts.append(bounds.tpm - tokens - held)
            ends = ((day + 1) * DAY_MS, month_end(now), now + DAY_MS)
            periods = zip(
                (Reason.BUDGET_DAY, Reason.BUDGET_MONTH, Reason.BUDGET_TOTAL),
                (bounds.budget_day, bounds.budget_month, bounds.budget_total),
                used,
                ends,
                strict=True,
            )
            for reason, bound, spent, end in periods:
                if bound is not None:
                    if spent + held + need > bound:
                        refusals.append((reason, end - now if spent + need > bound else UNKNOWN_MS))
                    lefts.append(bound - spent - held)
        refused, wait_ms = max(refusals, key=lambda refusal: refusal[1], default=(None, 0))  # the first of the longest
        if over:
            refused, wait_ms = Reason.SESSION_REVOKED, 0
        cap = plan.cap
        if refused is None:
            if reserves and not plan.explicit:
                cap = min([cap, *(left - prompt for left in lefts)])
            for scope in scopes:
                if before is None and not plan.counted:
                    scope.requests.append(now)
                if reserves:
                    scope.open[plan.request_id] = prompt + cap
            if reserves:
                self.reservations[plan.request_id] = Reservation(
                    _identity(plan), prompt + cap, prompt, day, month, plan.prompt_bytes, now + LEASE_MS
                )
        return Tally(refused, wait_ms, cap, prompt, str(self.life), tuple(figures))

    def settle(self, grant: Grant, settlement: Settlement) -> str:
        """Replace the reservation by what was used; returns settled, done or late."""
        held = self.reservations.pop(grant.request_id, None)
        if held is not None:
            return self._settle(grant.request_id, held, settlement)
        if grant.epoch == str(self.life) or grant.request_id in self._late:
            return "done"
        self._late.add(grant.request_id)
        prompt = grant.prompt_tokens if settlement.prompt_tokens is None else settlement.prompt_tokens
        day, month = calendar(min(grant.started_at // 1000, self.now))
        identity = Identity(
            grant.started_at, grant.tenant_id, grant.tenant, grant.key_id, grant.key_prefix, grant.model,
            grant.endpoint, grant.scopes, grant.counts_as,
        )  # fmt: skip
        self._charge(identity, day, month, prompt + settlement.completion_tokens)
        self.events.append(Settled(grant.request_id, day, month, prompt, settlement.completion_tokens))
        return "late"

    def _settle(self, request_id: str, held: Reservation, settlement: Settlement) -> str:
        identity = held.identity
        for scope in self._scopes_of(identity):
            scope.open.pop(request_id, None)
        prompt = held.prompt if settlement.prompt_tokens is None else settlement.prompt_tokens
        tokens = prompt + settlement.completion_tokens
        self._charge(identity, held.day, held.month, tokens)
        if settlement.exact:
            self.learn(identity.tenant_id, identity.model, held.prompt_bytes, prompt)
        self.events.append(Settled(request_id, held.day, held.month, prompt, settlement.completion_tokens))
        return "settled"

    def _charge(self, identity: Identity, day: int, month: int, tokens: int) -> None:
        for scope in self._scopes_of(identity):
            scope.uses.append((self.now, day, month, tokens))

    def _scopes_of(self, identity: Identity) -> list[Scope]:
        """Those that are there."""
        tenant = identity.tenant_id
        found = [self.tenants.get(tenant), self.keys.get(identity.counted)]
        found += [self.further.get((tenant, name)) for name in identity.scopes]
        return [scope for scope in found if scope is not None]

    def sweep(self, request_id: str, settlement: Settlement) -> str:
        """As `settle`, once the lease is over."""
        held = self.reservations.get(request_id)
        if held is None:
            return "done"
        if held.deadline > self.now:
            return "held"
        del self.reservations[request_id]
        return self._settle(request_id, held, settlement)

    def renew(self, progress: Iterable[tuple[str, int]]) -> None:
        for request_id, tokens in progress:
            held = self.reservations.get(request_id)
            if held is not None:
                self.reservations[request_id] = Reservation(
                    held.identity, held.tokens, held.prompt, held.day, held.month, held.prompt_bytes,
                    self.now + LEASE_MS, tokens,
                )  # fmt: skip

    def expired(self) -> list[Expired]:
        return [
            Expired(
                request_id,
                held.identity,
                held.progress,
                max(held.tokens - held.prompt, 0),
                (held.deadline - LEASE_MS) * 1000,
            )
            for request_id, held in self.reservations.items()
            if held.deadline <= self.now
        ]

    def estimate(self, tenant_id: int, model: str, prompt_bytes: int) -> int:
        if prompt_bytes == 0:
            return 0
        return math.ceil(prompt_bytes * self.ratios.get((tenant_id % SHARDS, model), 3500.0) * 1.1 / 10000) + 8

    def learn(self, tenant_id: int, model: str, prompt_bytes: int, tokens: int) -> None:
        if prompt_bytes < 64 or tokens < 1:
            return
        ratio = self.ratios.get((tenant_id % SHARDS, model), 3500.0)
        seen = tokens * 10000 / prompt_bytes
        ratio += (0.3 if seen > ratio else 0.1) * (seen - ratio)
        self.ratios[tenant_id % SHARDS, model] = float(f"{max(500.0, min(ratio, 20000.0)):.1f}")


def wait(counts: list[tuple[int, int]], sum_then: int, bound: int, need: int, now: int) -> int:
    """How long until enough of `counts` (when, how many) has left the window for `sum_then` to be within `bound`."""
    if need > bound:
        return WINDOW_MS
    excess = sum_then - bound
    if excess <= 0:
        return UNKNOWN_MS
    for at, count in sorted(counts):
        excess -= count
        if excess <= 0:
            return at // BUCKET_MS * BUCKET_MS + WINDOW_MS - now
    return WINDOW_MS


def calendar(now: int) -> tuple[int, int]:
    """The UTC day number, and the month as yyyymm."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=now)
    return now // DAY_MS, moment.year * 100 + moment.month


def month_end(now: int) -> int:
    month = calendar(now)[1]
    year, number = divmod(month, 100)
    following = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return round(following.timestamp() * 1000)


def _identity(plan: Plan) -> Identity:
    key = plan.key
    return Identity(
        plan.started_at, key.tenant.id, key.tenant.name, key.id, key.prefix, plan.model, plan.endpoint,
        tuple(scope.name for scope in plan.scopes), key.counts_as or 0,
    )  # fmt: skip
