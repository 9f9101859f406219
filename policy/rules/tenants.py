"""Tenants and keys as the rules see them: values, loaded elsewhere, replaced and never edited."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policy.rules.bounds import DEFAULT as USUAL_BOUNDS
from policy.rules.limits import UNLIMITED, Limits
from policy.rules.tiers import Tiers

if TYPE_CHECKING:
    from datetime import datetime

    from policy.rules.bounds import Bounds


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who pays. `models` are canonical names (see `policy.rules.models`); with `allow_all_models` they are ignored."""

    id: int
    name: str
    disabled: bool = False
    allow_all_models: bool = False
    models: frozenset[str] = frozenset()
    max_tokens: int | None = None  # cap of one completion; None: the gateway's default
    limits: Limits = UNLIMITED
    bounds: Bounds = USUAL_BOUNDS  # of the shape of a request


@dataclass(frozen=True, slots=True)
class Key:
    """One API key. The key itself is never held: `hash` is its argon2id hash in PHC string form."""

    id: int
    prefix: str  # the first 12 characters, shown and indexed
    hash: str = field(repr=False)
    tenant: Tenant
    owner: str = ""
    label: str = ""
    created_at: datetime | None = None
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    disabled: bool = False
    revoked_at: datetime | None = None  # in the future while a rotated key's grace runs
    models: frozenset[str] | None = None  # None: whatever the tenant may use
    max_tokens: int | None = None
    limits: Limits = UNLIMITED
    tiers: Tiers = field(default_factory=Tiers)  # of all models, as the operator has set them: the same for every key
    counts_as: int | None = None  # id of the key whose counters it goes on with: the first that was rotated

    @property
    def counted(self) -> int:
        """Whose counters its limits are held by: a key and those that were rotated out of it have one set."""
        return self.id if self.counts_as is None else self.counts_as

    def usable_at(self, now: datetime) -> bool:
        """Whether the key opens anything at `now` (aware, UTC); its secret is checked elsewhere."""
        if self.disabled or self.tenant.disabled:
            return False
        if self.expires_at is not None and now >= self.expires_at:
            return False
        return self.revoked_at is None or now < self.revoked_at

    def state_at(self, now: datetime) -> str:
        """One word for people: active, disabled, expired, revoked or rotating (revoked at a moment still to come)."""
        if self.revoked_at is not None:
            return "revoked" if now >= self.revoked_at else "rotating"
        if self.expires_at is not None and now >= self.expires_at:
            return "expired"
        return "disabled" if self.disabled or self.tenant.disabled else "active"

    def may_use(self, model: str) -> bool:
        """Whether key and tenant both allow the canonical name `model`; whether it is installed is another question."""
        if self.models is not None and model not in self.models:
            return False
        if self.tenant.allow_all_models:
            # An operator's ollama.com account pays for cloud models: allowing "all" never means those.
            return not is_cloud(model) or (self.models is not None and model in self.models)
        return model in self.tenant.models


def is_cloud(model: str) -> bool:
    """Whether a canonical model name runs on ollama.com under the operator's identity (`:cloud`, `-cloud` tags)."""
    return model.endswith((":cloud", "-cloud"))
