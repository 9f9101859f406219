"""What the command line asks for: tenants and keys made, changed, listed.

Each method is one transaction. What cannot be done is a Refusal, whose text says why and what to do instead. A key
never reaches more than its tenant: where a key is given a model that its tenant lacks, the tenant gets it too, and the
answer says so.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from policy.admission.hashing import Hashing
from policy.rules import keys, models
from policy.rules.bounds import USUAL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime, timedelta

    from policy.rules.bounds import Value
    from policy.rules.keys import ApiKey
    from policy.rules.tenants import Key, Tenant
    from policy.rules.tiers import Tier, Tiers

    Notes = tuple[str, ...]

_NAME = re.compile(r"(?!nz_)[a-z0-9][a-z0-9._-]{0,63}", re.IGNORECASE)  # the schema has the same


class Registry(Protocol):
    """One transaction's view of keys and tenants; see `policy.stores.registry` for what is locked."""

    async def tenants(self) -> list[Tenant]: ...
    async def tenant(self, name: str) -> Tenant | None: ...
    async def keys(self, tenant_id: int | None = None) -> list[Key]: ...
    async def key(self, prefix: str) -> Key | None: ...
    async def add_tenant(self, tenant: Tenant) -> int | None: ...
    async def save_tenant(self, tenant: Tenant) -> None: ...
    async def add_key(self, key: Key) -> int | None: ...
    async def save_key(self, key: Key, *, successor_id: int | None = None) -> None: ...
    async def tiers(self) -> Tiers: ...
    async def put_tiers(self, models: Collection[str], tiers: frozenset[Tier]) -> None: ...
    async def drop_tiers(self, models: Collection[str]) -> None: ...


class Refusal(Exception):
    """Why something is not done, and what to do."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a tenant or a key, and what else had to be done or known."""

    tenant: Tenant
    key: Key | None = None  # None: it was about the tenant
    notes: Notes = ()


@dataclass(frozen=True, slots=True)
class Minted:
    """A new key. `secret` exists here and nowhere else: show it once."""

    secret: ApiKey
    key: Key
    old: Key | None = None  # the key it takes over from
    notes: Notes = ()


class Admin:
    """`open` begins a transaction; `random` is a cryptographic source."""

    def __init__(
        self, open: Callable[[], AbstractAsyncContextManager[Registry]], random: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._open = open
        self._random = random

    # Tenants.

    async def create_tenant(self, tenant: Tenant) -> Change:
        """Store `tenant`, whose id is ignored and whose models may be written in any form."""
        if not _NAME.fullmatch(tenant.name):
            raise Refusal(
                f"{tenant.name!r} cannot be a tenant's name: use 1 to 64 letters, digits, '.', '_' and '-', "
                "beginning with a letter or a digit, and not with nz_"
            )
        tenant = replace(tenant, models=canonical(tenant.models))
        async with self._open() as registry:
            tenant_id = await registry.add_tenant(tenant)
            if tenant_id is None:
                raise Refusal(f"there is a tenant {tenant.name} already: `paddock list-tenants` shows it")
            return Change(replace(tenant, id=tenant_id))

    async def list_tenants(self) -> list[tuple[Tenant, int]]:
        """Every tenant with the number of its keys."""
        async with self._open() as registry:
            counts: dict[int, int] = {}
            for key in await registry.keys():
                counts[key.tenant.id] = counts.get(key.tenant.id, 0) + 1
            return [(tenant, counts.get(tenant.id, 0)) for tenant in await registry.tenants()]

    async def set_tenant_disabled(self, name: str, disabled: bool) -> Change:
        async with self._open() as registry:
            tenant = replace(await _tenant(registry, name), disabled=disabled)
            await registry.save_tenant(tenant)
            return Change(tenant)

    async def set_tenant_limits(self, name: str, limits: Mapping[str, int | None]) -> Change:
        """Set the named limits (None: remove) and `max_tokens`; the others stay."""
        async with self._open() as registry:
            tenant = await _tenant(registry, name)
            max_tokens, rest = _split(limits, tenant.max_tokens)
            tenant = replace(tenant, max_tokens=max_tokens, limits=replace(tenant.limits, **rest))
            await registry.save_tenant(tenant)
            return Change(tenant)

    async def set_tenant_bounds(self, name: str, bounds: Mapping[str, Value | None]) -> Change:
        """Set the named bounds on the shape of requests (None: as usual); the others stay."""
        async with self._open() as registry:
            tenant = await _tenant(registry, name)
            told = {name: USUAL[name] if value is None else value for name, value in bounds.items()}
            tenant = replace(tenant, bounds=replace(tenant.bounds, **told))  # type: ignore[arg-type]  # read for its name
            await registry.save_tenant(tenant)
            return Change(tenant)

    async def tenant(self, name: str) -> Tenant:
        async with self._open() as registry:
            return await _tenant(registry, name)

    # Keys.

    async def create_key(self, tenant_name: str, key: Key, *, all_models: bool = False) -> Minted:
        """Mint a key with what `key` says; its id, prefix, hash and tenant are ignored.

        `key.models` None means whatever the tenant may use. `all_models` says that this was asked for by name: a tenant
        that may use nothing yet is then opened to all models.
        """
        if key.models is not None:
            key = replace(key, models=canonical(key.models))
        secret, hash = await self._mint()
        async with self._open() as registry:
            tenant = await _tenant(registry, tenant_name)
            notes: Notes = ()
            if key.models is not None:
                tenant, notes = await _widened(registry, tenant, key.models)
            elif all_models:
                tenant, notes = await _opened(registry, tenant)
            key = await _added(registry, replace(key, prefix=secret.prefix, hash=hash, tenant=tenant))
        if not (tenant.allow_all_models or tenant.models or notes):
            notes = (f"tenant {tenant.name} may not use any model yet: `paddock allow-model {tenant.name} MODEL`",)
        return Minted(secret, key, notes=notes)

    async def list_keys(self, tenant_name: str | None = None) -> list[Key]:
        async with self._open() as registry:
            if tenant_name is None:
                return await registry.keys()
            return await registry.keys((await _tenant(registry, tenant_name)).id)

    async def set_key_disabled(self, prefix: str, disabled: bool, now: datetime) -> Change:
        async with self._open() as registry:
            key = await _key(registry, prefix)
            if not disabled and key.revoked_at is not None and key.revoked_at <= now:
                raise Refusal(f"key {prefix} is revoked, for good: `paddock create-key` makes another")
            key = replace(key, disabled=disabled)
            await registry.save_key(key)
            notes: Notes = ()
            if not disabled and key.tenant.disabled:
                notes = (f"tenant {key.tenant.name} is disabled: `paddock enable-tenant {key.tenant.name}`",)
            return Change(key.tenant, key, notes)

    async def revoke_key(self, prefix: str, now: datetime) -> Change:
        """Revoke at once and for good; a key revoked before keeps its date."""
        async with self._open() as registry:
            key = await _key(registry, prefix)
            if key.revoked_at is None or key.revoked_at > now:
                key = replace(key, revoked_at=now)
                await registry.save_key(key)
            return Change(key.tenant, key)

    async def rotate_key(self, prefix: str, grace: timedelta, now: datetime) -> Minted:
        """Mint a key like this one, which stays good for `grace` longer. Limits and budgets hold for both together, and
        what was used stays used: a rotation is no way to more."""
        secret, hash = await self._mint()
        async with self._open() as registry:
            old = await _key(registry, prefix)
            state = old.state_at(now)
            if old.revoked_at is not None:
                raise Refusal(
                    f"key {prefix} is {state}, revoked at {old.revoked_at:%Y-%m-%d %H:%M} UTC: nothing to rotate"
                )
            if old.disabled or state == "expired":
                raise Refusal(
                    f"key {prefix} is {state}: only a key in use is rotated, `paddock create-key` makes another"
                )
            new = replace(
                old, prefix=secret.prefix, hash=hash, created_at=now, last_used_at=None, counts_as=old.counted
            )
            new = await _added(registry, new)
            old = replace(old, revoked_at=now + grace)
            await registry.save_key(old, successor_id=new.id)
            return Minted(secret, new, old)

    async def set_key_limits(self, prefix: str, limits: Mapping[str, int | None]) -> Change:
        """Set the named limits (None: remove) and `max_tokens`; the others stay."""
        async with self._open() as registry:
            key = await _key(registry, prefix)
            max_tokens, rest = _split(limits, key.max_tokens)
            key = replace(key, max_tokens=max_tokens, limits=replace(key.limits, **rest))
            await registry.save_key(key)
            return Change(key.tenant, key)

    # Models.

    async def allow_for_tenant(self, name: str, names: Iterable[str], *, all_models: bool = False) -> Change:
        added = canonical(names)
        async with self._open() as registry:
            tenant = await _tenant(registry, name)
            tenant = replace(
                tenant, models=tenant.models | added, allow_all_models=tenant.allow_all_models or all_models
            )
            await registry.save_tenant(tenant)
            return Change(tenant)

    async def deny_for_tenant(self, name: str, names: Iterable[str], *, all_models: bool = False) -> Change:
        removed = canonical(names)
        async with self._open() as registry:
            tenant = await _tenant(registry, name)
            if all_models:
                tenant = replace(tenant, models=frozenset(), allow_all_models=False)
            elif tenant.allow_all_models:
                raise Refusal(
                    f"tenant {tenant.name} may use all models, so a single one cannot be taken from it: "
                    f"`paddock deny-model {tenant.name} --all`, then allow those it shall have"
                )
            else:
                tenant = replace(tenant, models=tenant.models - removed)
            await registry.save_tenant(tenant)
            return Change(tenant)

    async def allow_for_key(self, prefix: str, names: Iterable[str], *, all_models: bool = False) -> Change:
        """Add to the key's list; `all_models` lifts the list, so that the key may use what its tenant may."""
        added = canonical(names)
        async with self._open() as registry:
            key = await _key(registry, prefix)
            tenant = await _tenant(registry, key.tenant.name)
            notes: Notes = ()
            if all_models:
                key = replace(key, models=None)
                tenant, notes = await _opened(registry, tenant)
            elif key.models is None:
                tenant, notes = await _widened(registry, tenant, added)
                notes += (f"key {prefix} has no list of its own: it may use whatever tenant {tenant.name} may",)
            else:
                key = replace(key, models=key.models | added)
                tenant, notes = await _widened(registry, tenant, added)
            key = replace(key, tenant=tenant)
            await registry.save_key(key)
            return Change(tenant, key, notes)

    async def deny_for_key(self, prefix: str, names: Iterable[str], *, all_models: bool = False) -> Change:
        """Take from the key's list; a key without one gets the tenant's as it is now, less these."""
        removed = canonical(names)
        async with self._open() as registry:
            key = await _key(registry, prefix)
            notes: Notes = ()
            if all_models:
                key = replace(key, models=frozenset())
            elif key.models is not None:
                key = replace(key, models=key.models - removed)
            elif key.tenant.allow_all_models:
                raise Refusal(
                    f"key {prefix} may use all models, so a single one cannot be taken from it: "
                    f"`paddock deny-model --key {prefix} --all`, then allow those it shall have"
                )
            else:
                key = replace(key, models=key.tenant.models - removed)
                notes = (
                    f"key {prefix} now has a list of its own: what tenant {key.tenant.name} gets later is not on it",
                )
            await registry.save_key(key)
            return Change(key.tenant, key, notes)

    # Security tiers.

    async def list_tiers(self) -> Tiers:
        async with self._open() as registry:
            return await registry.tiers()

    async def set_tiers(self, names: Iterable[str], tiers: frozenset[Tier] | None) -> Tiers:
        """Put models on exactly these tiers (None: on those of the others). No names: all models that have none of
        their own, which is the way to open a tier to everything."""
        wanted = canonical(names)
        async with self._open() as registry:
            if tiers is None:
                await registry.drop_tiers(wanted)
            else:
                await registry.put_tiers(wanted, tiers)
            return await registry.tiers()

    async def _mint(self) -> tuple[ApiKey, str]:
        secret = keys.mint(self._random)
        with Hashing() as hashing:
            return secret, await hashing.hash(secret.reveal().encode())


def canonical(names: Iterable[str]) -> frozenset[str]:
    """Model names as they are compared; Refusal for one that cannot be a model's."""
    found = set()
    for name in names:
        try:
            found.add(models.canonical(name))
        except ValueError as error:
            raise Refusal(f"{name!r} is not the name of a model: {error}") from error
    return frozenset(found)


async def _tenant(registry: Registry, name: str) -> Tenant:
    tenant = await registry.tenant(name)
    if tenant is None:
        known = ", ".join(tenant.name for tenant in await registry.tenants()) or "none yet"
        raise Refusal(f"there is no tenant {name} ({known}): `paddock create-tenant {name}` makes it")
    return tenant


async def _key(registry: Registry, prefix: str) -> Key:
    key = await registry.key(prefix)
    if key is None:
        raise Refusal(f"there is no key {prefix}: `paddock list-keys` shows all")
    return key


async def _added(registry: Registry, key: Key) -> Key:
    key_id = await registry.add_key(key)
    if key_id is None:  # of 62^9 prefixes this one exists: it will not happen twice
        raise Refusal("the new key's prefix is taken by chance: run the command again")
    return replace(key, id=key_id)


async def _widened(registry: Registry, tenant: Tenant, wanted: frozenset[str]) -> tuple[Tenant, Notes]:
    """The tenant with all of `wanted` allowed, and what to say about it."""
    missing = frozenset() if tenant.allow_all_models else wanted - tenant.models
    if not missing:
        return tenant, ()
    tenant = replace(tenant, models=tenant.models | missing)
    await registry.save_tenant(tenant)
    return tenant, (f"also allowed for tenant {tenant.name}: {', '.join(sorted(missing))}",)


async def _opened(registry: Registry, tenant: Tenant) -> tuple[Tenant, Notes]:
    """The tenant opened to all models if it had none at all, and what to say about it."""
    if tenant.allow_all_models:
        return tenant, ()
    if tenant.models:
        allowed = ", ".join(sorted(tenant.models))
        return tenant, (f"a key reaches what its tenant may use, and {tenant.name} may use: {allowed}",)
    tenant = replace(tenant, allow_all_models=True)
    await registry.save_tenant(tenant)
    return tenant, (f"tenant {tenant.name} had no models: it may now use all",)


def _split(limits: Mapping[str, int | None], max_tokens: int | None) -> tuple[int | None, dict[str, int | None]]:
    rest = dict(limits)
    return rest.pop("max_tokens", max_tokens), rest
