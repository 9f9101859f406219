"""What the command line asks for about browser sessions: who may have them, on what terms, and which are taken back.

Each method is one transaction. What cannot be done is a Refusal, whose text says why and what to do instead. A session
never reaches what its tenant cannot: unlike a key, allowing it a model gives its tenant nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from policy.admission.admin import Refusal, canonical
from policy.rules import publishable_keys
from policy.rules.origins import origin
from policy.rules.session_token import MAX_LIFETIME, SALT_BYTES, SESSION_ID, base64url
from policy.rules.sessions import ENDPOINTS, SessionPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager

    from policy.rules.publishable_keys import PublishableKey
    from policy.rules.tenants import Tenant

    Notes = tuple[str, ...]

_NEVER = datetime.fromtimestamp(0, UTC)
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Registry(Protocol):
    """One transaction's view; see `policy.stores.sessions_postgres`."""

    async def tenant(self, name: str) -> Tenant | None: ...
    async def tenants(self) -> list[Tenant]: ...
    async def policy(self, tenant_id: int) -> SessionPolicy | None: ...
    async def policies(self) -> list[SessionPolicy]: ...
    async def save_policy(self, policy: SessionPolicy, not_before: datetime) -> None: ...
    async def drop_policy(self, tenant_id: int) -> bool: ...
    async def add_key(self, kid: str, salt: bytes, *, if_none: bool = False, drop_others: bool = False) -> bool: ...
    async def kids(self) -> list[str]: ...
    async def add_publishable(self, key: str, tenant_id: int, label: str) -> None: ...
    async def publishable(self, tenant_id: int | None = None) -> list[PublishableKey]: ...
    async def revoke_publishable(self, key: str, now: datetime) -> PublishableKey | None: ...
    async def revoke_session(self, session_id: str, expires_at: datetime) -> None: ...


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked to be different. Origins, models and endpoints are added; the rest replaces what was."""

    origins: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    all_models: bool = False
    endpoints: tuple[str, ...] = ()  # all of them, where any is named: what is not named is not allowed any more
    fields: Mapping[str, object] = field(default_factory=dict)  # of SessionPolicy, by name
    limits: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)  # by scope, then by limit


@dataclass(frozen=True, slots=True)
class Allowed:
    """A tenant's policy as it is now; None: it has none any more."""

    tenant: Tenant
    policy: SessionPolicy | None
    notes: Notes = ()


class SessionAdmin:
    """`open` begins a transaction; `random` is a cryptographic source."""

    def __init__(
        self, open: Callable[[], AbstractAsyncContextManager[Registry]], random: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._open = open
        self._random = random

    # What a tenant's pages may do.

    async def allow(self, tenant_name: str, terms: Terms) -> Allowed:
        """Allow a tenant browser sessions, or change the terms."""
        added = frozenset(_origin(text) for text in terms.origins)
        models = canonical(terms.models)
        for word in terms.endpoints:
            if word not in ENDPOINTS:
                raise Refusal(f"{word!r} is no endpoint of sessions: {', '.join(ENDPOINTS)}")
        async with self._open() as registry:
            tenant = await _tenant(registry, tenant_name)
            policy = await registry.policy(tenant.id)
            if policy is None:
                if not added:
                    raise Refusal(f"tenant {tenant.name} has no session policy yet: say from which --origin")
                policy = SessionPolicy(tenant, added)
            kept = policy.models
            if terms.all_models:
                kept = None
            elif models:
                kept = (policy.models or frozenset()) | models
            policy = replace(
                policy,
                origins=policy.origins | added,
                models=kept,
                endpoints=frozenset(terms.endpoints) or policy.endpoints,
                **terms.fields,  # type: ignore[arg-type]  # the command line checked each
                **{scope: replace(getattr(policy, scope), **limits) for scope, limits in terms.limits.items()},
            )
            await registry.save_policy(policy, _moment(policy.not_before))
            await registry.add_key(base64url(self._random(6)), self._random(SALT_BYTES), if_none=True)
            others = [other for other in await registry.policies() if other.tenant.id != tenant.id]
        return Allowed(tenant, policy, (*_about_models(policy), *_about_origins(policy, added, others)))

    async def deny(self, tenant_name: str, origins: Iterable[str] = ()) -> Allowed:
        """Take origins from a tenant's policy; without any: the policy. Its sessions end."""
        removed = frozenset(_origin(text) for text in origins)
        async with self._open() as registry:
            tenant = await _tenant(registry, tenant_name)
            policy = await registry.policy(tenant.id)
            if policy is None:
                raise Refusal(f"tenant {tenant.name} allows no browser sessions")
            missing = sorted(removed - policy.origins)
            if missing:
                raise Refusal(f"tenant {tenant.name} does not allow {', '.join(missing)} anyway")
            left = policy.origins - removed if removed else frozenset[str]()
            if left:
                policy = replace(policy, origins=left)
                await registry.save_policy(policy, _moment(policy.not_before))
                return Allowed(tenant, policy)
            await registry.drop_policy(tenant.id)
            return Allowed(tenant, None)

    async def policies(self) -> list[SessionPolicy]:
        async with self._open() as registry:
            return await registry.policies()

    # Publishable keys.

    async def create_publishable(self, tenant_name: str, label: str) -> tuple[str, Tenant, Notes]:
        key = publishable_keys.mint(self._random)
        async with self._open() as registry:
            tenant = await _tenant(registry, tenant_name)
            await registry.add_publishable(key, tenant.id, label)
            notes: Notes = ()
            if await registry.policy(tenant.id) is None:
                notes = (f"it opens nothing yet: `paddock allow-sessions {tenant.name} --origin …`",)
        return key, tenant, notes

    async def revoke_publishable(self, key: str, now: datetime) -> PublishableKey:
        """Revoke at once and for good; sessions that it named end."""
        async with self._open() as registry:
            found = await registry.revoke_publishable(key, now)
        if found is None:
            raise Refusal("there is no such publishable key: `paddock list-sessions` shows all")
        return found

    async def list_publishable(self, tenant_name: str | None = None) -> list[PublishableKey]:
        async with self._open() as registry:
            return await registry.publishable(
                None if tenant_name is None else (await _tenant(registry, tenant_name)).id
            )

    # Sessions and their keys.

    async def revoke_session(self, session_id: str, now: datetime) -> None:
        """Take one session back, whether it is known to live or not."""
        if not SESSION_ID.fullmatch(session_id):
            raise Refusal("a session's id is ns_ and 22 letters, digits, '-' or '_': `paddock list-sessions`")
        async with self._open() as registry:
            await registry.revoke_session(session_id, now + timedelta(seconds=MAX_LIFETIME))

    async def revoke_all(self, tenant_name: str, now: datetime) -> Allowed:
        """Take back every session that a tenant has opened until now."""
        async with self._open() as registry:
            tenant = await _tenant(registry, tenant_name)
            policy = await registry.policy(tenant.id)
            if policy is None:
                raise Refusal(f"tenant {tenant.name} allows no browser sessions")
            policy = replace(policy, not_before=now.timestamp())
            await registry.save_policy(policy, now)
            return Allowed(tenant, policy)

    async def rotate_key(self, *, at_once: bool) -> tuple[str, list[str]]:
        """Make a new signing key; its kid, and those of all that verify. `at_once`: the old verify nothing any more."""
        kid = base64url(self._random(6))
        async with self._open() as registry:
            await registry.add_key(kid, self._random(SALT_BYTES), drop_others=at_once)
            return kid, await registry.kids()


def _origin(text: str) -> str:
    try:
        return origin(text)
    except ValueError as error:
        raise Refusal(f"{text!r} is no origin: {error}") from error


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC) if seconds else _NEVER


async def _tenant(registry: Registry, name: str) -> Tenant:
    tenant = await registry.tenant(name)
    if tenant is None:
        known = ", ".join(tenant.name for tenant in await registry.tenants()) or "none yet"
        raise Refusal(f"there is no tenant {name} ({known}): `paddock create-tenant {name}` makes it")
    return tenant


def _about_models(policy: SessionPolicy) -> Notes:
    tenant = policy.tenant
    if not (tenant.allow_all_models or tenant.models):
        return (f"tenant {tenant.name} may not use any model yet: `paddock allow-model {tenant.name} MODEL`",)
    missing = () if tenant.allow_all_models else sorted((policy.models or frozenset()) - tenant.models)
    if not missing:
        return ()
    return (f"a session reaches what its tenant may use, and {tenant.name} may not use {', '.join(missing)}",)


def _about_origins(policy: SessionPolicy, added: frozenset[str], others: list[SessionPolicy]) -> Notes:
    notes: list[str] = []
    for one in sorted(added):
        also = sorted(other.tenant.name for other in others if one in other.origins)
        if also:
            notes.append(
                f"{one} is also allowed for {', '.join(also)}: its pages need a publishable key to say whose they are "
                f"(`paddock create-publishable-key {policy.tenant.name}`)"
            )
        host = one.partition("://")[2]
        if one.startswith("http://") and not host.startswith(_LOOPBACK):
            notes.append(
                f"{one} is not https: on the way a session can be read and used by others, and hmac cannot work"
            )
    return tuple(notes)
