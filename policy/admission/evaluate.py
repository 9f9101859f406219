"""The walk of a request through policy: who, what, which model, at what cost. One method, read from top to bottom.

Plan, act, judge: everything before `counters.admit` is decided from values; that one call counts and reserves in one
atomic step; what it returns is judged by a pure function. Each dependency fails closed: a store that does not answer
is a refusal with 503, never an answer.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from policy.rules import requests
from policy.rules.decision import Allow, Deny, Reason, Request
from policy.rules.faults import DatabaseDown, StoreDown
from policy.rules.grant import Duty, Grant
from policy.rules.judgement import Mode, Plan, judge, rate_headers
from policy.rules.keys import credential
from policy.rules.logs import redact_path
from policy.rules.requests import Ask, Endpoint, Refusal
from policy.rules.subject import Subject
from policy.rules.tiers import HEADER as TIER_HEADER
from policy.rules.tiers import asked_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.rules.judgement import Figures, Tally
    from policy.rules.settlement import Known
    from policy.rules.tenants import Key
    from policy.rules.tiers import Tier

log = logging.getLogger(__name__)

SEED_TRIES = 5  # what the ledger knows is out of date when events are carried there while it is read


class Keyring(Protocol):
    """Who holds a key."""

    async def authenticate(self, presented: str | None, address: str, now: datetime) -> Key | Deny: ...


class Installed(Protocol):
    """One model that discovery found."""

    @property
    def name(self) -> str:
        """As its upstream lists it."""


class Models(Protocol):
    """What the upstreams have installed."""

    @property
    def models(self) -> Mapping[str, Installed]: ...

    @property
    def reachable(self) -> bool: ...

    def refresh_soon(self) -> None: ...

    def upstream_for(self, model: str) -> str: ...


class Counters(Protocol):
    """Limits, budgets and reservations."""

    async def admit(self, plan: Plan, known: Known | None = None) -> Tally | None: ...


class Seeds(Protocol):
    """What the ledger knows of a tenant and a key (with those that count as it), for counters that the store has not or
    no longer."""

    async def read(self, tenant_id: int, key_id: int) -> Known: ...


class Observe(Protocol):
    """Is told how a tenant stood before a request. It must not raise."""

    def __call__(self, tenant: str, figures: Figures) -> None: ...


def _unobserved(tenant: str, figures: Figures) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Judges requests. `default_max_tokens` caps where nobody else does."""

    keyring: Keyring
    models: Models
    counters: Counters
    seeds: Seeds
    default_max_tokens: int
    observe: Observe = _unobserved
    envelopes: bool = True  # whether sealed requests are taken at all

    async def check(self, request: Request) -> Allow | Deny:
        """Admit or refuse one request. Never raises for a dependency that is down: that is a refusal too."""
        try:
            return await self._check(request)
        except StoreDown as fault:
            log.warning("counter store down", extra={"fault": str(fault), "request_id": request.request_id})
            return Deny(Reason.STORE_DOWN)
        except DatabaseDown as fault:
            log.warning("database down", extra={"fault": str(fault), "request_id": request.request_id})
            return Deny(Reason.DATABASE_DOWN)

    async def _check(self, request: Request) -> Allow | Deny:
        found = requests.find(request.method, request.path)
        if found is None or found[0].session:  # what browser sessions reach, no key does
            return Deny(Reason.ENDPOINT)
        endpoint, path_model = found
        key = await self.keyring.authenticate(credential(request.headers), request.address, datetime.now(UTC))
        if isinstance(key, Deny):
            return replace(key, endpoint=endpoint.path)
        plan = Plan(request.request_id, request.started_at, Mode.COUNT, key, endpoint.path, address=request.address)

        ask = await self.read(plan, endpoint, request, path_model)
        if isinstance(ask, Deny):
            return ask
        if endpoint.kind is requests.Kind.ENVELOPE:
            return await self._hand_on(plan, asked_for(request.headers.get(TIER_HEADER)))
        return await self.judge(plan, endpoint, ask)

    async def read(self, plan: Plan, endpoint: Endpoint, request: Request, path_model: str | None) -> Ask | Deny | None:
        """What is asked; None where there is no body to say so."""
        if request.query:
            return await self.refuse(plan, Reason.BAD_REQUEST, "a query string is not allowed here")
        if request.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            return await self.refuse(plan, Reason.BAD_REQUEST, "Content-Encoding is not supported: send the body as is")
        if endpoint.kind in (requests.Kind.LIST, requests.Kind.ENVELOPE):
            return None
        if request.withheld and path_model is None:
            log.error(
                "no body", extra={"hint": "ext_authz must have with_request_body", "request_id": request.request_id}
            )
            return await self.refuse(plan, Reason.FAULT)
        if not request.complete:
            return await self.refuse(plan, Reason.TOO_LARGE)
        ask = requests.parse(endpoint, request.body, plan.key.tenant.bounds, path_model=path_model)
        return await self.refuse(plan, Reason.BAD_REQUEST, ask.message) if isinstance(ask, Refusal) else ask

    async def judge(self, plan: Plan, endpoint: Endpoint, ask: Ask | None) -> Allow | Deny:
        """Everything that depends on what is asked, wherever the asking body came from: model, caps, cost."""
        if ask is None:
            return await self._admit(plan, endpoint, None)
        key = plan.key
        installed = self.models.models.get(ask.model)
        # A name that no upstream has is the client's own words, perhaps a key in the wrong field: it is kept cut.
        plan = replace(plan, model=redact_path(ask.model) if installed is None else ask.model)
        if not self.models.models and not self.models.reachable:
            # Nothing is known because nothing answers: said before permissions are looked at, so of every model alike.
            self.models.refresh_soon()
            return await self.refuse(plan, Reason.UPSTREAM)
        if installed is None or not key.may_use(ask.model):
            if installed is None:
                self.models.refresh_soon()
            return await self.refuse(plan, Reason.MODEL)
        if plan.tier is not None and not key.tiers.allow(ask.model, plan.tier):
            return await self.refuse(plan, Reason.TIER)
        if endpoint.metered:
            cap = completion_cap(key, self.default_max_tokens)
            if ask.max_tokens is not None and ask.max_tokens > cap:
                return await self.refuse(plan, Reason.BAD_REQUEST, f"more than {cap} completion tokens asked for")
            explicit = ask.max_tokens is not None or not endpoint.generates
            each = 0 if not endpoint.generates else cap if ask.max_tokens is None else ask.max_tokens
            plan = replace(
                plan, mode=Mode.RESERVE, prompt_bytes=ask.prompt_bytes, cap=each * ask.completions, explicit=explicit,
                completions=ask.completions,
            )  # fmt: skip
        return await self._admit(plan, endpoint, ask)

    async def refuse(self, plan: Plan, reason: Reason, message: str = "") -> Deny:
        """Refuse for what was asked. It counts as a request of its key, so that probing has a rate."""
        plan = replace(plan, mode=Mode.DENY, reason=reason)
        denial = judge(plan, await self._count(plan))
        assert denial is not None  # noqa: S101  # a plan with a reason is always refused
        return replace(denial, message=message) if denial.reason is reason else denial

    async def _admit(self, plan: Plan, endpoint: Endpoint, ask: Ask | None) -> Allow | Deny:
        tally = await self._count(plan)
        denial = judge(plan, tally)
        if denial is not None:
            return denial
        headers = rate_headers(tally, admitted=not plan.counted)
        if ask is None:
            return Allow(None, headers, tenant=plan.key.tenant.name)
        name = _forwarded_name(ask, self.models.models.get(ask.model))
        per_completion = tally.cap // max(ask.completions, 1)
        grant = Grant(
            request_id=plan.request_id,
            started_at=plan.started_at,
            duty=Duty.METER if endpoint.metered else Duty.SHOW,
            endpoint=endpoint.path,
            model=ask.model,
            stream=ask.stream,
            tenant_id=plan.key.tenant.id,
            tenant=plan.key.tenant.name,
            key_id=plan.key.id,
            key_prefix=plan.key.prefix,
            epoch=tally.epoch if plan.mode is Mode.RESERVE else "",
            prompt_tokens=tally.prompt_tokens,
            cap=tally.cap,
            prompt_bytes=plan.prompt_bytes,
            splices=requests.rewrite(ask, cap=per_completion, model=name),
            hide_usage=not ask.wants_usage,
            scopes=tuple(scope.name for scope in plan.scopes),
            counts_as=plan.key.counts_as or 0,
        )
        return Allow(grant, headers, upstream=self.models.upstream_for(ask.model), tenant=plan.key.tenant.name)

    async def _hand_on(self, plan: Plan, tier: Tier | None) -> Allow | Deny:
        """An envelope: key and rate are checked by its headers alone. Processor opens it and has it judged as any body
        is, for the subject that goes along."""
        if not self.envelopes:
            return await self.refuse(plan, Reason.NO_ENVELOPES)
        if tier is None:
            return await self.refuse(plan, Reason.ENVELOPE)
        tally = await self._count(plan)
        denial = judge(plan, tally)
        if denial is not None:
            return denial
        key = plan.key
        grant = Grant(
            request_id=plan.request_id,
            started_at=plan.started_at,
            duty=Duty.ENVELOPE,
            endpoint=plan.endpoint,
            model="",
            stream=False,
            tenant_id=key.tenant.id,
            tenant=key.tenant.name,
            key_id=key.id,
            key_prefix=key.prefix,
            epoch="",  # what is inside is not known yet, so nothing is reserved
            prompt_tokens=0,
            cap=0,
            counts_as=key.counts_as or 0,
            subject=Subject.of(key, tier, plan.address),
        )
        return Allow(grant, rate_headers(tally, admitted=True), tenant=key.tenant.name)

    async def _count(self, plan: Plan) -> Tally:
        tally = await self.counters.admit(plan)
        for _ in range(SEED_TRIES):
            if tally is not None:
                break
            known = await self.seeds.read(plan.key.tenant.id, plan.key.counted)
            tally = await self.counters.admit(plan, known)
        if tally is None:
            raise StoreDown("the ledger moved on while it was read, again and again")
        self.observe(plan.key.tenant.name, tally.scopes[0])  # the tenant's comes first
        return tally


def _forwarded_name(ask: Ask, installed: Installed | None) -> str:
    """The name that the upstream lists, save where Ollama adds its default tag to the client's spelling anyway."""
    if installed is None or installed.name in (ask.model_as_sent, f"{ask.model_as_sent}:latest"):
        return ask.model_as_sent
    return installed.name


def completion_cap(key: Key, default: int) -> int:
    """The most completion tokens one completion of this key may have."""
    caps = [cap for cap in (key.max_tokens, key.tenant.max_tokens) if cap is not None]
    return min(caps, default=default)
