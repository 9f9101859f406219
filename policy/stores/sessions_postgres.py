"""Browser sessions in PostgreSQL: the directory that requests are judged by, and what the command line changes.

`load` reads everything in one transaction, and is asked after a change and every few seconds, never for a request: its
cost grows with tenants that allow sessions, not with sessions.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from policy.rules.limits import Limits
from policy.rules.publishable_keys import PublishableKey
from policy.rules.session_token import MAX_LIFETIME, KeySet, SigningKey
from policy.rules.sessions import (
    Directory,
    EntropyPolicy,
    FingerprintPolicy,
    SessionPolicy,
    SignaturePolicy,
)
from policy.stores.postgres import LIMITS, SELECT_TENANT, tenant_of
from policy.stores.registry import Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    from policy.rules.session_token import Secret
    from policy.rules.tenants import Tenant
    from policy.stores.postgres import Postgres, Watch

SCOPES = ("session", "fingerprint", "address", "together")
_POLICY = (
    "origins", "models", "endpoints", "lifetime_seconds", "fingerprint_policy", "signature_policy", "entropy_policy",
    "max_tokens", "max_per_fingerprint", "max_live", "opened_per_minute", "not_before",
)  # fmt: skip
_POLICIES = f"""
    {SELECT_TENANT}, {", ".join(f"p.{name}" for name in _POLICY)}
    FROM session_policy p JOIN tenant t ON t.id = p.tenant_id
    WHERE $1::bigint IS NULL OR p.tenant_id = $1 ORDER BY t.name
"""
_LIMITS = "SELECT * FROM session_limit WHERE $1::bigint IS NULL OR tenant_id = $1"
_PUBLISHABLE = "SELECT key, tenant_id FROM publishable_key WHERE revoked_at IS NULL"
_REVOKED = "SELECT session_id FROM session_revocation WHERE expires_at > now()"
_KEYS = "SELECT kid, salt, created_at FROM session_key ORDER BY created_at"
_SAVE = f"""
    INSERT INTO session_policy (tenant_id, {", ".join(_POLICY)})
    VALUES ({", ".join(f"${place}" for place in range(1, len(_POLICY) + 2))})
    ON CONFLICT (tenant_id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _POLICY)}
"""  # noqa: S608  # constant text
_SAVE_LIMITS = f"""
    INSERT INTO session_limit (tenant_id, scope, {", ".join(LIMITS)}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (tenant_id, scope) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in LIMITS)}
"""  # noqa: S608  # constant text
# A key whose last token has expired verifies nothing any more. The newest is never dropped.
_DROP_OLD_KEYS = """
    DELETE FROM session_key k WHERE EXISTS (
        SELECT FROM session_key newer
        WHERE newer.created_at > k.created_at AND newer.created_at < now() - make_interval(secs => $1)
    )
"""


class SessionTables:
    """What policy needs: the directory, word of changes, and a new key when the old one is old."""

    def __init__(self, postgres: Postgres, secret: Secret) -> None:
        self._postgres = postgres
        self._secret = secret

    async def load(self, now: float, settled: float) -> Directory:
        """Everything as it is now; a signing key counts as known everywhere `settled` seconds after it was made."""
        async with self._postgres.connection() as connection, connection.transaction(isolation="repeatable_read"):
            policies = await _policies(connection, None)
            publishable = await connection.fetch(_PUBLISHABLE)
            revoked = await connection.fetch(_REVOKED)
            keys = await connection.fetch(_KEYS)
        derived = [
            SigningKey.derive(self._secret, row["kid"], row["salt"], row["created_at"].timestamp()) for row in keys
        ]
        return Directory(
            policies={policy.tenant.id: policy for policy in policies},
            publishable={row["key"]: row["tenant_id"] for row in publishable},
            revoked=frozenset(row["session_id"] for row in revoked),
            keys=KeySet.of(derived, now, settled),
        )

    async def rotate(self, kid: str, salt: bytes, older_than: float) -> bool:
        """Make this the signing key if there are keys and the newest is older than `older_than` seconds."""
        async with self._postgres.transaction() as connection:
            made = await connection.execute(
                """
                INSERT INTO session_key (kid, salt) SELECT $1, $2 WHERE EXISTS (SELECT FROM session_key)
                AND NOT EXISTS (SELECT FROM session_key WHERE created_at > now() - make_interval(secs => $3))
                """,
                kid, salt, older_than,
            )  # fmt: skip
            if made.endswith(" 0"):
                return False
            await connection.execute(_DROP_OLD_KEYS, float(MAX_LIFETIME))
            return True

    def watch(self) -> AbstractAsyncContextManager[Watch]:
        return self._postgres.watch()


class SessionRegistries:
    """Opens transactions for the command line."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    @asynccontextmanager
    async def open(self) -> AsyncIterator[SessionRegistry]:
        """One transaction: committed when the block ends, undone when it raises. DatabaseDown: there was no answer."""
        async with self._postgres.transaction() as connection:
            yield SessionRegistry(connection)


class SessionRegistry:
    """What one transaction sees and does."""

    def __init__(self, connection: PoolConnectionProxy) -> None:
        self._connection = connection
        self._tenants = Registry(connection)

    async def tenant(self, name: str) -> Tenant | None:
        """The tenant of this name in whatever case, locked."""
        return await self._tenants.tenant(name)

    async def tenants(self) -> list[Tenant]:
        return await self._tenants.tenants()

    async def policy(self, tenant_id: int) -> SessionPolicy | None:
        """That of a tenant, locked."""
        await self._connection.execute("SELECT FROM session_policy WHERE tenant_id = $1 FOR UPDATE", tenant_id)
        found = await _policies(self._connection, tenant_id)
        return found[0] if found else None

    async def policies(self) -> list[SessionPolicy]:
        """All, by tenant name; not locked."""
        return await _policies(self._connection, None)

    async def save_policy(self, policy: SessionPolicy, not_before: datetime) -> None:
        tenant_id = policy.tenant.id
        await self._connection.execute(
            _SAVE,
            tenant_id,
            sorted(policy.origins),
            None if policy.models is None else sorted(policy.models),
            sorted(policy.endpoints),
            policy.lifetime,
            policy.fingerprint_policy.value,
            policy.signature_policy.value,
            policy.entropy_policy.value,
            policy.max_tokens,
            policy.max_per_fingerprint,
            policy.max_live,
            policy.opened_per_minute,
            not_before,
        )
        for scope in SCOPES:
            limits: Limits = getattr(policy, scope)
            await self._connection.execute(_SAVE_LIMITS, tenant_id, scope, *(getattr(limits, name) for name in LIMITS))

    async def drop_policy(self, tenant_id: int) -> bool:
        """Whether there was one."""
        done = await self._connection.execute("DELETE FROM session_policy WHERE tenant_id = $1", tenant_id)
        return not done.endswith(" 0")

    async def add_key(self, kid: str, salt: bytes, *, if_none: bool = False, drop_others: bool = False) -> bool:
        """Store a signing key; `if_none`: only as the first. Whether it was stored."""
        await self._connection.execute("LOCK TABLE session_key IN SHARE ROW EXCLUSIVE MODE")
        if if_none and await self._connection.fetchval("SELECT EXISTS (SELECT FROM session_key)"):
            return False
        if drop_others:
            await self._connection.execute("DELETE FROM session_key")
        await self._connection.execute("INSERT INTO session_key (kid, salt) VALUES ($1, $2)", kid, salt)
        await self._connection.execute(_DROP_OLD_KEYS, float(MAX_LIFETIME))
        return True

    async def kids(self) -> list[str]:
        """Of all signing keys that still verify, the oldest first."""
        return [row["kid"] for row in await self._connection.fetch(_KEYS)]

    async def add_publishable(self, key: str, tenant_id: int, label: str) -> None:
        await self._connection.execute(
            "INSERT INTO publishable_key (key, tenant_id, label) VALUES ($1, $2, $3)", key, tenant_id, label
        )

    async def publishable(self, tenant_id: int | None = None) -> list[PublishableKey]:
        """Those of one tenant, or all, oldest first."""
        rows = await self._connection.fetch(
            """
            SELECT k.key, t.name AS tenant, k.label, k.created_at, k.revoked_at
            FROM publishable_key k JOIN tenant t ON t.id = k.tenant_id
            WHERE $1::bigint IS NULL OR k.tenant_id = $1 ORDER BY k.created_at, k.key
            """,
            tenant_id,
        )
        return [PublishableKey(**row) for row in rows]

    async def revoke_publishable(self, key: str, now: datetime) -> PublishableKey | None:
        """Revoke it for good; one revoked before keeps its date. None where there is none."""
        row = await self._connection.fetchrow(
            """
            UPDATE publishable_key k SET revoked_at = coalesce(k.revoked_at, $2) FROM tenant t
            WHERE k.key = $1 AND t.id = k.tenant_id
            RETURNING k.key, t.name AS tenant, k.label, k.created_at, k.revoked_at
            """,
            key, now,
        )  # fmt: skip
        return None if row is None else PublishableKey(**row)

    async def revoke_session(self, session_id: str, expires_at: datetime) -> None:
        """Take a session back until it would have expired; what has is forgotten."""
        await self._connection.execute("DELETE FROM session_revocation WHERE expires_at < now()")
        await self._connection.execute(
            """
            INSERT INTO session_revocation (session_id, expires_at) VALUES ($1, $2)
            ON CONFLICT (session_id) DO UPDATE SET expires_at = greatest(session_revocation.expires_at, $2)
            """,
            session_id, expires_at,
        )  # fmt: skip


async def _policies(connection: PoolConnectionProxy, tenant_id: int | None) -> list[SessionPolicy]:
    limits: dict[int, dict[str, Limits]] = {}
    for row in await connection.fetch(_LIMITS, tenant_id):
        limits.setdefault(row["tenant_id"], {})[row["scope"]] = Limits(**{name: row[name] for name in LIMITS})
    return [_policy_of(row, limits.get(row["tenant_id"], {})) for row in await connection.fetch(_POLICIES, tenant_id)]


def _policy_of(row: asyncpg.Record, limits: Mapping[str, Limits]) -> SessionPolicy:
    return SessionPolicy(
        tenant=tenant_of(row),
        origins=frozenset(row["origins"]),
        models=None if row["models"] is None else frozenset(row["models"]),
        endpoints=frozenset(row["endpoints"]),
        lifetime=row["lifetime_seconds"],
        fingerprint_policy=FingerprintPolicy(row["fingerprint_policy"]),
        signature_policy=SignaturePolicy(row["signature_policy"]),
        entropy_policy=EntropyPolicy(row["entropy_policy"]),
        max_tokens=row["max_tokens"],
        max_per_fingerprint=row["max_per_fingerprint"],
        max_live=row["max_live"],
        opened_per_minute=row["opened_per_minute"],
        not_before=row["not_before"].timestamp(),
        **{scope: limits[scope] for scope in SCOPES if scope in limits},
    )
