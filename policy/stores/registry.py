"""Keys and tenants in PostgreSQL as the command line changes them: read with a lock, replaced as whole values.

Everything done to one `Registry` is one transaction. What it reads is locked until its end, so of two operators who
change the same tenant at once the second sees what the first has done. Services hear of it when it is committed.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from policy.stores.postgres import LIMITS, OTHERS, SELECT_KEY, SELECT_TENANT, key_of, tenant_of, tiers_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from asyncpg.pool import PoolConnectionProxy

    from policy.rules.limits import Limits
    from policy.rules.tenants import Key, Tenant
    from policy.rules.tiers import Tier, Tiers
    from policy.stores.postgres import Postgres

_TENANTS = f"{SELECT_TENANT} FROM tenant t ORDER BY t.name"
_TENANT = f"{SELECT_TENANT} FROM tenant t WHERE t.id = $1"
_KEYS = f"{SELECT_KEY} WHERE $1::bigint IS NULL OR t.id = $1 ORDER BY k.id"
_KEY = f"{SELECT_KEY} WHERE k.id = $1"
# Lock first, read after: one statement that did both would wait for the lock and then read the models as they were
# before it waited.
_LOCK_TENANT = "SELECT id FROM tenant WHERE lower(name) = lower($1) FOR UPDATE"
_LOCK_KEY = "SELECT id FROM api_key WHERE prefix = $1 FOR UPDATE"
_ADD_TENANT = """
    INSERT INTO tenant (name, disabled, allow_all_models, max_tokens,
        rpm, tpm, concurrency, budget_day, budget_month, budget_total, bounds)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT (lower(name)) DO NOTHING RETURNING id
"""
_SAVE_TENANT = """
    UPDATE tenant SET disabled = $2, allow_all_models = $3, max_tokens = $4,
        rpm = $5, tpm = $6, concurrency = $7, budget_day = $8, budget_month = $9, budget_total = $10, bounds = $11
    WHERE id = $1
"""
_ADD_KEY = """
    INSERT INTO api_key (prefix, hash, tenant_id, owner, label, created_at, expires_at, disabled, revoked_at,
        models_restricted, max_tokens, rpm, tpm, concurrency, budget_day, budget_month, budget_total, counts_as)
    VALUES ($1, $2, $3, $4, $5, coalesce($6, now()), $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
    ON CONFLICT (prefix) DO NOTHING RETURNING id
"""
_SAVE_KEY = """
    UPDATE api_key SET owner = $2, label = $3, expires_at = $4, disabled = $5, revoked_at = $6,
        models_restricted = $7, max_tokens = $8,
        rpm = $9, tpm = $10, concurrency = $11, budget_day = $12, budget_month = $13, budget_total = $14,
        successor_id = coalesce($15, successor_id)
    WHERE id = $1
"""
_DROP_TENANT_MODELS = "DELETE FROM tenant_model WHERE tenant_id = $1 AND model <> ALL ($2::text[])"
_PUT_TENANT_MODELS = "INSERT INTO tenant_model SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING"
_DROP_KEY_MODELS = "DELETE FROM api_key_model WHERE key_id = $1 AND model <> ALL ($2::text[])"
_TIERS = "SELECT jsonb_object_agg(model, to_jsonb(tiers))::text FROM model_tier"
_PUT_TIERS = """
    INSERT INTO model_tier SELECT unnest($1::text[]), $2::text[]
    ON CONFLICT (model) DO UPDATE SET tiers = excluded.tiers
"""
_DROP_TIERS = "DELETE FROM model_tier WHERE model = ANY ($1::text[])"
_PUT_KEY_MODELS = "INSERT INTO api_key_model SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING"


class Registries:
    """Opens transactions."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Registry]:
        """One transaction: committed when the block ends, undone when it raises. DatabaseDown: there was no answer."""
        async with self._postgres.transaction() as connection:
            yield Registry(connection)


class Registry:
    """What one transaction sees and does."""

    def __init__(self, connection: PoolConnectionProxy) -> None:
        self._connection = connection

    async def tenants(self) -> list[Tenant]:
        """All, by name; not locked."""
        return [tenant_of(row) for row in await self._connection.fetch(_TENANTS)]

    async def tenant(self, name: str) -> Tenant | None:
        """The tenant of this name in whatever case, locked."""
        tenant_id = await self._connection.fetchval(_LOCK_TENANT, name)
        row = await self._connection.fetchrow(_TENANT, tenant_id)
        return None if row is None else tenant_of(row)

    async def keys(self, tenant_id: int | None = None) -> list[Key]:
        """Those of one tenant, or all, oldest first; not locked."""
        return [key_of(row) for row in await self._connection.fetch(_KEYS, tenant_id)]

    async def key(self, prefix: str) -> Key | None:
        """The key with this prefix, locked; its tenant is not."""
        key_id = await self._connection.fetchval(_LOCK_KEY, prefix)
        row = await self._connection.fetchrow(_KEY, key_id)
        return None if row is None else key_of(row)

    async def add_tenant(self, tenant: Tenant) -> int | None:
        """Store a new tenant, whatever `tenant.id` is; its id, or None when the name is taken."""
        tenant_id: int | None = await self._connection.fetchval(
            _ADD_TENANT,
            tenant.name,
            tenant.disabled,
            tenant.allow_all_models,
            tenant.max_tokens,
            *_figures(tenant.limits),
            json.dumps(tenant.bounds.differing()),
        )
        if tenant_id is not None:
            await self._connection.execute(_PUT_TENANT_MODELS, tenant_id, sorted(tenant.models))
        return tenant_id

    async def save_tenant(self, tenant: Tenant) -> None:
        """Replace all but the name."""
        await self._connection.execute(
            _SAVE_TENANT,
            tenant.id,
            tenant.disabled,
            tenant.allow_all_models,
            tenant.max_tokens,
            *_figures(tenant.limits),
            json.dumps(tenant.bounds.differing()),
        )
        await self._connection.execute(_DROP_TENANT_MODELS, tenant.id, sorted(tenant.models))
        await self._connection.execute(_PUT_TENANT_MODELS, tenant.id, sorted(tenant.models))

    async def add_key(self, key: Key) -> int | None:
        """Store a new key, whatever `key.id` is; its id, or None when the prefix is taken."""
        key_id: int | None = await self._connection.fetchval(
            _ADD_KEY,
            key.prefix,
            key.hash,
            key.tenant.id,
            key.owner,
            key.label,
            key.created_at,
            key.expires_at,
            key.disabled,
            key.revoked_at,
            key.models is not None,
            key.max_tokens,
            *_figures(key.limits),
            key.counts_as,
        )
        if key_id is not None:
            await self._connection.execute(_PUT_KEY_MODELS, key_id, sorted(key.models or ()))
        return key_id

    async def save_key(self, key: Key, *, successor_id: int | None = None) -> None:
        """Replace all but prefix, hash, tenant, counters and stamps; `successor_id` is the key that takes over."""
        await self._connection.execute(
            _SAVE_KEY,
            key.id,
            key.owner,
            key.label,
            key.expires_at,
            key.disabled,
            key.revoked_at,
            key.models is not None,
            key.max_tokens,
            *_figures(key.limits),
            successor_id,
        )
        await self._connection.execute(_DROP_KEY_MODELS, key.id, sorted(key.models or ()))
        await self._connection.execute(_PUT_KEY_MODELS, key.id, sorted(key.models or ()))

    async def tiers(self) -> Tiers:
        """Which models are on which tiers; not locked."""
        return tiers_of(await self._connection.fetchval(_TIERS))

    async def put_tiers(self, models: Collection[str], tiers: frozenset[Tier]) -> None:
        """Put models on exactly these tiers; no models: every model that has nothing of its own."""
        names = sorted(models) or [OTHERS]
        await self._connection.execute(_PUT_TIERS, names, sorted(tiers))

    async def drop_tiers(self, models: Collection[str]) -> None:
        """Forget what was said of models, or (no models) of those of which nothing is said."""
        await self._connection.execute(_DROP_TIERS, sorted(models) or [OTHERS])


def _figures(limits: Limits) -> list[int | None]:
    return [getattr(limits, name) for name in LIMITS]
