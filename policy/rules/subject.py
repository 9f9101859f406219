"""For whom processor judges what was in an envelope: the key as policy found it, without what opens anything.

Policy sees the headers of an envelope and checks the key and its rate; the model, the tokens and the budget are in the
body, which processor alone can read. So the key's bounds travel with the grant, and the judgement there is made of the
same values by the same code as here.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from dataclasses import fields as fields_of
from typing import TYPE_CHECKING, Self

from policy.rules.bounds import Bounds
from policy.rules.limits import Limits
from policy.rules.tenants import Key, Tenant
from policy.rules.tiers import Tier, Tiers

if TYPE_CHECKING:
    from collections.abc import Mapping

_Figures = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """What of a key and its tenant a judgement depends on, in values that JSON has."""

    tier: str  # that was asked for
    tier_usual: bool  # see `Tiers.unlike`
    tier_unlike: tuple[str, ...]
    allow_all_models: bool
    tenant_models: tuple[str, ...]
    key_models: tuple[str, ...] | None
    tenant_max_tokens: int | None
    key_max_tokens: int | None
    tenant_limits: _Figures
    key_limits: _Figures
    address: str  # the client's, for the count of refusals
    bounds: Mapping[str, object] = field(default_factory=dict)  # see `Bounds.differing`

    @classmethod
    def of(cls, key: Key, tier: Tier, address: str) -> Self:
        usual, unlike = key.tiers.unlike(tier)
        return cls(
            tier=tier.value,
            tier_usual=usual,
            tier_unlike=unlike,
            allow_all_models=key.tenant.allow_all_models,
            tenant_models=tuple(key.tenant.models),
            key_models=None if key.models is None else tuple(key.models),
            tenant_max_tokens=key.tenant.max_tokens,
            key_max_tokens=key.max_tokens,
            tenant_limits=astuple(key.tenant.limits),
            key_limits=astuple(key.limits),
            address=address,
            bounds=key.tenant.bounds.differing(),
        )

    def as_fields(self) -> dict[str, object]:
        """In JSON's own kinds of value, for `from_fields`; the usual bounds are not mentioned."""
        return {name: getattr(self, name) for name in _NAMES if name != "bounds" or self.bounds}

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> Self:
        """Read what JSON made of one; TypeError where that was none."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})  # type: ignore[arg-type]  # our own words: the grant cannot be forged

    def key(self, *, id: int, counts_as: int, prefix: str, tenant_id: int, tenant: str) -> Key:
        """The key again, as far as judging goes. It has no hash: nothing can be checked against it."""
        return Key(
            id=id,
            counts_as=counts_as or None,
            prefix=prefix,
            hash="",
            tenant=Tenant(
                id=tenant_id,
                name=tenant,
                allow_all_models=self.allow_all_models,
                models=frozenset(self.tenant_models),
                max_tokens=self.tenant_max_tokens,
                limits=Limits(*self.tenant_limits),
                bounds=Bounds.of(self.bounds),
            ),
            models=None if self.key_models is None else frozenset(self.key_models),
            max_tokens=self.key_max_tokens,
            limits=Limits(*self.key_limits),
            tiers=Tiers.at(Tier(self.tier), self.tier_usual, self.tier_unlike),
        )


_NAMES = tuple(one.name for one in fields_of(Subject))
