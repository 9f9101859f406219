"""What browser sessions may do, tenant by tenant: values, loaded elsewhere, replaced and never edited.

A session is a child of its tenant. Its models are the tenant's or fewer, its endpoints are a few of the OpenAI ones,
and what it spends is held to five scopes at once, of which the tightest binds: the tenant, all its sessions together,
the session, its fingerprint, its client address. Fingerprints and sessions cost a stranger nothing to make; addresses
cost something; what holds for all sessions together is what an operator can sleep on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from policy.rules.addresses import neighbourhood
from policy.rules.limits import Limits
from policy.rules.requests import Bounds
from policy.rules.strict_json import NotAcceptable, read
from policy.rules.tenants import Key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.rules.decision import Reason
    from policy.rules.session_token import Claims, KeySet
    from policy.rules.tenants import Tenant

MAX_OPENING_BYTES = 16 * 1024  # of the body of POST /session
MAX_FINGERPRINT = 512  # characters
ENTROPY_VALUES = 8  # different values in entropyData, where a policy asks for them
ENDPOINTS = ("chat", "completions", "embeddings", "models")
_DAY_MS = 26 * 3600 * 1000  # a UTC day and two hours of it for late settlements
_IDLE_MS = 2 * 3600 * 1000  # longer than an answer takes: what it reserved is given back to where it came from


class FingerprintPolicy(StrEnum):
    """What a request is worth whose fingerprint differs from the session's."""

    IGNORE = "ignore"
    OBSERVE = "observe"  # counted and audited, not refused: the published client's changes by itself
    ENFORCE = "enforce"


class SignaturePolicy(StrEnum):
    """Whether requests are signed."""

    OFF = "off"
    LEGACY = "legacy"  # the published client's: accepted, without being trusted
    HMAC = "hmac"


class EntropyPolicy(StrEnum):
    """Whether whoever opens a session must show signs of a person."""

    IGNORE = "ignore"
    REQUIRE = "require"


# What an operator gets who names no figures: a page for a few hundred visitors that cannot empty a budget overnight.
DEFAULT_SESSION = Limits(rpm=20, tpm=20_000, concurrency=4, budget_total=100_000)
DEFAULT_FINGERPRINT = Limits(rpm=40, tpm=40_000, concurrency=8)
DEFAULT_ADDRESS = Limits(rpm=60, tpm=100_000, concurrency=16, budget_day=500_000)
DEFAULT_TOGETHER = Limits(budget_day=2_000_000)


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """One tenant's. `models` None: whatever the tenant may use."""

    tenant: Tenant
    origins: frozenset[str]
    models: frozenset[str] | None = None
    endpoints: frozenset[str] = frozenset(ENDPOINTS)
    lifetime: int = 1800  # seconds
    fingerprint_policy: FingerprintPolicy = FingerprintPolicy.OBSERVE
    signature_policy: SignaturePolicy = SignaturePolicy.LEGACY
    entropy_policy: EntropyPolicy = EntropyPolicy.IGNORE
    max_tokens: int | None = None  # of one completion
    max_per_fingerprint: int = 5  # live sessions
    max_live: int = 10_000  # live sessions of the tenant
    opened_per_minute: int = 10  # sessions, by one client address
    not_before: float = 0.0  # seconds since the epoch: sessions opened until then are over
    session: Limits = DEFAULT_SESSION
    fingerprint: Limits = DEFAULT_FINGERPRINT
    address: Limits = DEFAULT_ADDRESS
    together: Limits = DEFAULT_TOGETHER


@dataclass(frozen=True, slots=True)
class Scope:
    """One more scope that a request is held to, by its name in the counter store."""

    name: str
    limits: Limits
    keep_ms: int  # how long it is kept after its last use; 0: it must be there already, and keeps its own end


@dataclass(frozen=True, slots=True)
class Refused:
    """Why the counter store opened no session."""

    reason: Reason
    wait: int  # whole seconds after which it may be tried again
    counted: bool  # only counted: past the rate, it has no audit row of its own


@dataclass(frozen=True, slots=True)
class Directory:
    """All that decides about sessions besides the counters, as it stood at one moment."""

    policies: Mapping[int, SessionPolicy]  # by tenant id
    publishable: Mapping[str, int]  # publishable key to tenant id; what is revoked is not in it
    revoked: frozenset[str]  # session ids, until they would have expired
    keys: KeySet
    by_origin: Mapping[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        found: dict[str, tuple[int, ...]] = {}
        for tenant_id, policy in self.policies.items():
            for origin in policy.origins:
                found[origin] = (*found.get(origin, ()), tenant_id)
        object.__setattr__(self, "by_origin", found)

    @property
    def on(self) -> bool:
        """Whether there are browser sessions at all."""
        return bool(self.policies) and self.keys.signs is not None

    def named(self, publishable_key: str, origin: str) -> SessionPolicy | None:
        """Whose session is asked for: by the key, or by an origin that one tenant alone allows."""
        if publishable_key:
            return self.policies.get(self.publishable.get(publishable_key, 0))
        tenants = self.by_origin.get(origin, ())
        return self.policies[tenants[0]] if len(tenants) == 1 else None

    def ended(self, claims: Claims, policy: SessionPolicy, now: float) -> bool:
        """Whether something that came after the token took it back."""
        return (
            policy.tenant.disabled
            or claims.session_id in self.revoked
            or claims.issued_at <= policy.not_before
            or now >= claims.issued_at + policy.lifetime  # shortened since
            or (claims.publishable_key != "" and self.publishable.get(claims.publishable_key) != claims.tenant_id)
        )


@dataclass(frozen=True, slots=True)
class Opening:
    """The body of POST /session."""

    fingerprint: str
    publishable_key: str
    values: int  # different values in entropyData


def opening(body: bytes) -> Opening:
    """Read the body; NotAcceptable, which says why not."""
    if len(body) > MAX_OPENING_BYTES:
        raise NotAcceptable(f"the body has more than {MAX_OPENING_BYTES} bytes")
    bounds = Bounds()
    whole, _ = read(body, depth=16, containers=bounds.containers, walked=frozenset())
    fingerprint, key = whole.get("fingerprint"), whole.get("publishableKey")
    if not isinstance(fingerprint, str) or not 1 <= len(fingerprint) <= MAX_FINGERPRINT:
        raise NotAcceptable(f"fingerprint is to be a string of 1 to {MAX_FINGERPRINT} characters")
    if not isinstance(key, str | None):
        raise NotAcceptable("publishableKey is to be a string")
    return Opening(fingerprint, key or "", _different(whole.get("entropyData")))


def holder(policy: SessionPolicy, session_id: str) -> Key:
    """The session as a key of its tenant: no row has it, no secret opens it. All sessions of a tenant are one key in
    the ledger, whose id is the tenant's with the other sign, so that reports do not grow with visitors."""
    return Key(
        id=-policy.tenant.id,
        prefix=session_id,
        hash="",
        tenant=policy.tenant,
        models=policy.models,
        max_tokens=policy.max_tokens,
        limits=policy.together,
    )


def scopes(policy: SessionPolicy, claims: Claims, address: str) -> tuple[Scope, ...]:
    """What a request of this session is held to, besides its tenant and all sessions together."""
    tenant_id = policy.tenant.id
    return (
        Scope(session_scope(claims.session_id), policy.session, 0),
        Scope(f"sf:{tenant_id}:{claims.fingerprint}", policy.fingerprint, _kept(policy.fingerprint)),
        Scope(f"sa:{tenant_id}:{neighbourhood(address)}", policy.address, _kept(policy.address)),
    )


def session_scope(session_id: str) -> str:
    return f"s:{session_id}"


def _kept(limits: Limits) -> int:
    return _IDLE_MS if limits.budget_day is None else _DAY_MS


def _different(value: object) -> int:
    """How many different values there are in a value of JSON, at any depth."""
    found: set[str] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
        elif one is not None:
            found.add(json.dumps(one))
    return len(found)
