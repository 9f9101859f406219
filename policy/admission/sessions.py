"""Browser sessions at the gate: preflights, opening a session, and what is asked with one.

Who is asking is settled here, from a token that nobody looks up; what is asked is judged by the very evaluator that
judges keys. A session is one more holder to it, with more scopes to its name.

Everything of this is answered through Envoy's ext_authz filter, a new session and a preflight too: that is the one
place where a request arrives with the client's true address, and where an answer can be the last word.

Identity comes before counting: a request that fails on its token, origin, signature or fingerprint is refused without a
word to the counters, so that whoever holds half of a session cannot use up the other half's.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from policy.rules import origins, requests
from policy.rules.decision import Allow, Answer, Deny, Reason
from policy.rules.faults import DatabaseDown, StoreDown
from policy.rules.judgement import Mode, Plan
from policy.rules.models import effective
from policy.rules.request_signature import verify as verify_signature
from policy.rules.session_token import Claims, Expired, SigningKey, new_session_id, sign, verify
from policy.rules.sessions import (
    ENTROPY_VALUES,
    EntropyPolicy,
    FingerprintPolicy,
    SignaturePolicy,
    holder,
    opening,
    scopes,
)
from policy.rules.strict_json import NotAcceptable
from policy.rules.tags import models_body

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from policy.rules.decision import Request
    from policy.rules.requests import Ask, Endpoint
    from policy.rules.session_token import Secret
    from policy.rules.sessions import Directory, Refused, SessionPolicy

log = logging.getLogger(__name__)

PATH = "/session"
SIGNAL_FINGERPRINT = "fingerprint"  # it differs from the session's, and its policy is to observe
_BEARER = re.compile(r"bearer +([^\s,]+) *", re.IGNORECASE)
# Of these no page may read the answer: it has no business here.
_NOT_READABLE = frozenset({Reason.SESSION_ORIGIN, Reason.SESSION_TENANT})


class Book(Protocol):
    """What every tenant allows, as it is now."""

    def current(self) -> Directory: ...


class Live(Protocol):
    """Live sessions."""

    async def open(self, policy: SessionPolicy, claims: Claims, address: str) -> Refused | None: ...


class Judge(Protocol):
    """Judges what is asked; see `policy.admission.evaluate`."""

    async def read(
        self, plan: Plan, endpoint: Endpoint, request: Request, path_model: str | None
    ) -> Ask | Deny | None: ...
    async def judge(self, plan: Plan, endpoint: Endpoint, ask: Ask | None) -> Allow | Deny: ...
    async def refuse(self, plan: Plan, reason: Reason, message: str = "") -> Deny: ...


class Listed(Protocol):
    """One model that discovery found."""

    @property
    def details(self) -> Mapping[str, object]: ...


class Models(Protocol):
    """What the upstreams have installed."""

    @property
    def models(self) -> Mapping[str, Listed]: ...


class Sessions:
    """Answers for PATH and for whatever sessions reach. `now` in seconds since the epoch."""

    def __init__(
        self,
        book: Book,
        live: Live,
        judge: Judge,
        models: Models,
        secret: Secret,
        *,
        now: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._book = book
        self._live = live
        self._judge = judge
        self._models = models
        self._secret = secret
        self._now = now
        self._random = random

    async def check(self, request: Request) -> Allow | Deny | Answer:
        """Answer one request. Never raises for a dependency that is down: that is a refusal too."""
        origin = request.headers.get("origin", "")
        try:
            directory = self._book.current()
        except DatabaseDown as fault:
            return _down(Reason.DATABASE_DOWN, request, fault)
        if not directory.on:
            return Deny(Reason.ENDPOINT)
        if request.method == "OPTIONS":
            return _preflight(directory, request, origin)
        work = self._open if request.path == PATH else self._use
        decision: Allow | Deny | Answer
        try:
            decision = await work(directory, request, origin)
        except StoreDown as fault:
            decision = _down(Reason.STORE_DOWN, request, fault)
        except DatabaseDown as fault:
            decision = _down(Reason.DATABASE_DOWN, request, fault)
        return _readable(directory, decision, origin)

    # A new session.

    async def _open(self, directory: Directory, request: Request, origin: str) -> Deny | Answer:
        here = Deny(Reason.BAD_REQUEST, endpoint=PATH)
        if request.method != "POST":
            return replace(here, reason=Reason.ENDPOINT)
        if origin not in directory.by_origin:
            return replace(here, reason=Reason.SESSION_ORIGIN)
        if request.query:
            return replace(here, message="a query string is not allowed here")
        if not request.complete:
            return replace(here, reason=Reason.TOO_LARGE)
        try:
            asked = opening(request.body)
        except NotAcceptable as error:
            return replace(here, message=str(error))
        key = request.headers.get("x-publishable-key", "") or asked.publishable_key
        if asked.publishable_key not in ("", key):
            return replace(here, message="two different publishable keys")
        policy = directory.named(key, origin)
        if policy is None or policy.tenant.disabled:
            return replace(here, reason=Reason.SESSION_TENANT)
        here = replace(here, tenant=policy.tenant.name, tenant_id=policy.tenant.id)
        if origin not in policy.origins:
            return replace(here, reason=Reason.SESSION_ORIGIN)
        if policy.entropy_policy is EntropyPolicy.REQUIRE and asked.values < ENTROPY_VALUES:
            return replace(here, reason=Reason.SESSION_ENTROPY)
        now = self._now()
        claims = Claims(
            session_id=new_session_id(self._random),
            tenant_id=policy.tenant.id,
            issued_at=int(now),
            expires_at=int(now) + policy.lifetime,
            fingerprint=self._secret.fingerprint(policy.tenant.id, asked.fingerprint),
            origin=origin,
            publishable_key=key,
        )
        refused = await self._live.open(policy, claims, request.address)
        if refused is not None:
            return replace(here, reason=refused.reason, retry_after=refused.wait, recorded=not refused.counted)
        signing = directory.keys.signs
        assert signing is not None  # noqa: S101  # the directory is on
        return _opened(policy, claims, signing, now)

    # With a session.

    async def _use(self, directory: Directory, request: Request, origin: str) -> Allow | Deny | Answer:
        found = requests.find(request.method, request.path)
        if found is None or not found[0].session:
            return Deny(Reason.ENDPOINT)
        endpoint, path_model = found
        now = self._now()
        who = self._holder(directory, request, origin, endpoint, now)
        if isinstance(who, Deny):
            return who
        policy, claims, key = who
        here = Deny(
            Reason.SESSION_REVOKED, tenant=policy.tenant.name, tenant_id=policy.tenant.id,
            key_id=-policy.tenant.id, key_prefix=claims.session_id, endpoint=endpoint.path,
        )  # fmt: skip
        plan = Plan(
            request.request_id, request.started_at, Mode.COUNT, holder(policy, claims.session_id), endpoint.path,
            address=request.address, scopes=scopes(policy, claims, request.address),
        )  # fmt: skip
        if policy.signature_policy is SignaturePolicy.HMAC and request.complete:
            signature = verify_signature(
                key.request_key(claims.session_id), request.method, request.path, request.body, request.headers, now
            )
            if isinstance(signature, Reason):
                return replace(here, reason=signature)
            plan = replace(plan, signature=signature)
        if endpoint.session not in policy.endpoints:
            return await self._judge.refuse(plan, Reason.ENDPOINT)
        ask = await self._judge.read(plan, endpoint, request, path_model)
        if isinstance(ask, Deny):
            return ask
        said = request.headers.get("x-fingerprint") if ask is None else ask.fingerprint
        differs = said is None or self._secret.fingerprint(claims.tenant_id, said) != claims.fingerprint
        if differs and policy.fingerprint_policy is FingerprintPolicy.ENFORCE:
            return replace(here, reason=Reason.SESSION_FINGERPRINT)
        decision = await self._judge.judge(plan, endpoint, ask)
        if isinstance(decision, Deny):
            return decision
        if differs and ask is not None and policy.fingerprint_policy is FingerprintPolicy.OBSERVE:
            decision = replace(decision, signals=(SIGNAL_FINGERPRINT,))
        if ask is not None:
            return decision
        allowed = effective(plan.key, self._models.models).values()
        return Answer(
            200, models_body(model.details for model in allowed), decision.headers, tenant=policy.tenant.name,
            tenant_id=policy.tenant.id, key_prefix=claims.session_id, endpoint=endpoint.path,
        )  # fmt: skip

    def _holder(
        self, directory: Directory, request: Request, origin: str, endpoint: Endpoint, now: float
    ) -> tuple[SessionPolicy, Claims, SigningKey] | Deny:
        """Whose session it is, or the refusal."""
        here = Deny(Reason.SESSION_MISSING, endpoint=endpoint.path)
        authorization = request.headers.get("authorization", "")
        if not authorization:
            return here
        bearer = _BEARER.fullmatch(authorization)
        verified = verify(bearer[1] if bearer else "", directory.keys, now)
        if isinstance(verified, Reason):
            return replace(here, reason=verified)
        claims, key = (verified.claims, None) if isinstance(verified, Expired) else verified
        here = replace(here, tenant_id=claims.tenant_id, key_prefix=claims.session_id)
        policy = directory.policies.get(claims.tenant_id)
        if policy is not None:
            here = replace(here, tenant=policy.tenant.name)
        if key is None:
            return replace(here, reason=Reason.SESSION_EXPIRED)
        if policy is None:
            return replace(here, reason=Reason.SESSION_REVOKED)
        if directory.ended(claims, policy, now):
            return replace(here, reason=Reason.SESSION_REVOKED)
        # Browsers say an origin wherever a page of another one asks; what says none is no page of anybody's.
        if claims.origin not in policy.origins or origin not in ("", claims.origin):
            return replace(here, reason=Reason.SESSION_ORIGIN)
        return policy, claims, key


def _down(reason: Reason, request: Request, fault: Exception) -> Deny:
    log.warning("session not judged", extra={"fault": str(fault), "request_id": request.request_id})
    return Deny(reason, endpoint=request.path)


def _preflight(directory: Directory, request: Request, origin: str) -> Deny | Answer:
    """Whose page it is cannot be known yet: a preflight carries neither token nor body. So any tenant's will do, and
    the request itself is held to its own."""
    wanted = request.headers.get("access-control-request-method", "")
    if origin not in directory.by_origin or wanted not in ("GET", "POST"):
        return Deny(Reason.SESSION_ORIGIN, endpoint=request.path)
    return Answer(204, headers=origins.preflight(origin), endpoint=request.path, unrecorded=True)


def _opened(policy: SessionPolicy, claims: Claims, key: SigningKey, now: float) -> Answer:
    body: dict[str, object] = {
        "token": sign(claims, key),
        "sessionId": claims.session_id,
        "expiresAt": claims.expires_at * 1000,
        "serverTime": int(now * 1000),  # a page whose clock is wrong signs by this one
    }
    if policy.signature_policy is SignaturePolicy.HMAC:
        body["signingKey"] = key.request_key_text(claims.session_id)
    return Answer(
        200, json.dumps(body, separators=(",", ":")).encode(), tenant=policy.tenant.name, tenant_id=policy.tenant.id,
        key_prefix=claims.session_id, endpoint=PATH,
    )  # fmt: skip


def _readable(directory: Directory, decision: Allow | Deny | Answer, origin: str) -> Allow | Deny | Answer:
    """The decision with what lets the page read it, where it is a page of a tenant's."""
    if isinstance(decision, Deny):
        if decision.status == 401:
            decision = replace(decision, headers=(), retry_after=None)  # a session that is over has no limits to tell
        if decision.reason in _NOT_READABLE:
            return decision
    if origin not in directory.by_origin:
        return decision
    return replace(decision, headers=(*decision.headers, *origins.readable(origin)))
