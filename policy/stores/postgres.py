"""Keys in PostgreSQL as requests need them: plain SQL, values out.

What a request may have to wait for is `Postgres.load`: one query for keys, their tenants and the models of both.
`watch` is the other half, a connection of its own that hears of every change (migration 0001 has the triggers) and
notices within two seconds that the server is gone or hangs. What the command line does to keys is in `registry`.

PostgreSQL failing to answer, in whatever way, is DatabaseDown to the caller, who fails closed. LISTEN lives as
long as its connection: a pooler in transaction mode must not stand in between.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

import asyncpg

from policy.rules.bounds import Bounds
from policy.rules.faults import DatabaseDown
from policy.rules.limits import Limits
from policy.rules.tenants import Key, Tenant
from policy.rules.tiers import DEFAULT, Tier, Tiers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator, Mapping
    from datetime import datetime

    from asyncpg.pool import PoolConnectionProxy

CHANNEL = "paddock_changed"
OTHERS = "*"  # in model_tier: every model that has no row of its own
LIMITS = ("rpm", "tpm", "concurrency", "budget_day", "budget_month", "budget_total")
_SECONDS = 2.0  # a look-up takes well under a millisecond: beyond this the server is as good as gone
# What asyncpg raises where the server cannot do its part now. TimeoutError is an OSError; InternalClientError is what a
# connection says that the server ended in the middle of a word.
UNANSWERED = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
PATIENT_SECONDS = 15.0  # for a person who waits, on a machine that may be busy
_PULSE_SECONDS = 1.0  # how often the watching connection is asked for a sign of life, and how long one may take

SELECT_TENANT = """
    SELECT t.id AS tenant_id, t.name AS tenant_name, t.disabled AS tenant_disabled, t.allow_all_models,
        t.max_tokens AS tenant_max_tokens, t.rpm AS tenant_rpm, t.tpm AS tenant_tpm,
        t.concurrency AS tenant_concurrency, t.budget_day AS tenant_budget_day,
        t.budget_month AS tenant_budget_month, t.budget_total AS tenant_budget_total, t.bounds::text AS tenant_bounds,
        ARRAY(SELECT model FROM tenant_model WHERE tenant_id = t.id) AS tenant_models
"""
SELECT_KEY = f"""
    {SELECT_TENANT},
        k.id, k.prefix, k.hash, k.owner, k.label, k.created_at, k.expires_at, k.last_used_at, k.disabled,
        k.revoked_at, k.counts_as,
        k.max_tokens, k.rpm, k.tpm, k.concurrency, k.budget_day, k.budget_month, k.budget_total,
        CASE WHEN k.models_restricted THEN ARRAY(SELECT model FROM api_key_model WHERE key_id = k.id) END AS models,
        (SELECT jsonb_object_agg(model, to_jsonb(tiers)) FROM model_tier)::text AS tiers
    FROM api_key k JOIN tenant t ON t.id = k.tenant_id
"""  # noqa: S608 (constant text)
_LOAD = f"{SELECT_KEY} WHERE k.prefix = ANY ($1)"
# Rows are locked in the order of their ids, so that two processes cannot deadlock. A row that somebody holds is left
# out rather than waited for: the key's next use stamps it.
_STAMP = """
    WITH used AS (SELECT * FROM unnest($1::bigint[], $2::timestamptz[]) AS used (id, at)),
    free AS (SELECT id FROM api_key WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
    UPDATE api_key k SET last_used_at = used.at FROM used JOIN free USING (id)
    WHERE k.id = used.id AND (k.last_used_at IS NULL OR k.last_used_at < used.at)
"""


class Postgres:
    """A pool that connects when first asked, so that a service may start before its database does."""

    def __init__(self, url: str, pool: asyncpg.Pool, patience: float = _SECONDS) -> None:
        self._url = url
        self._pool = pool
        self._patience = patience

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, *, connections: int = 8, patience: float = _SECONDS) -> AsyncIterator[Postgres]:
        """The store at `url`, in any form asyncpg takes (`postgresql:///db?host=/directory` is a Unix socket).
        `patience`, in seconds, is for a connection and for each statement."""
        pool = await asyncpg.create_pool(
            url, min_size=0, max_size=connections, timeout=patience, command_timeout=patience
        )
        try:
            yield cls(url, pool, patience)
        finally:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                async with asyncio.timeout(_PULSE_SECONDS):  # a goodbye to a hung server would hang: cut it then
                    await pool.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[PoolConnectionProxy]:
        """A connection of the pool; whatever PostgreSQL fails to do in the block is DatabaseDown."""
        with unanswered_is_database_down():
            async with self._pool.acquire(timeout=self._patience) as connection:
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PoolConnectionProxy]:
        """The same, all or nothing."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def load(self, prefixes: Collection[str]) -> Mapping[str, Key]:
        """The keys with these prefixes as they are now; what is not there is left out."""
        async with self.connection() as connection:
            return {row["prefix"]: key_of(row) for row in await connection.fetch(_LOAD, list(prefixes))}

    async def stamp(self, used: Mapping[int, datetime]) -> None:
        """Record when keys (by id) were last used; a stamp never moves back."""
        async with self.connection() as connection:
            await connection.execute(_STAMP, list(used.keys()), list(used.values()))

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Watch]:
        """Listen for changes; from the block's first line on none is missed."""
        with unanswered_is_database_down():
            connection = await asyncpg.connect(self._url, timeout=self._patience, command_timeout=_PULSE_SECONDS)
        try:
            watch = Watch(connection)
            with unanswered_is_database_down():
                await watch.listen()
                await self._pool.expire_connections()  # those of before may lead to a server that is no more
            yield watch
        finally:
            connection.terminate()


class Watch:
    """The notices that arrive on one connection."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._notices: asyncio.Queue[str | None] = asyncio.Queue()  # None: the connection is gone

    async def listen(self) -> None:
        self._connection.add_termination_listener(lambda _: self._notices.put_nowait(None))
        await self._connection.add_listener(CHANNEL, lambda *notice: self._notices.put_nowait(str(notice[3])))

    async def notice(self) -> str:
        """Wait for the next: `key:<prefix>`, `tenant:<id>`, `sessions` or `all`.

        DatabaseDown as soon as the connection is lost, or when the server gave no sign of life for two seconds.
        """
        while True:
            try:
                async with asyncio.timeout(_PULSE_SECONDS):
                    notice = await self._notices.get()
            except TimeoutError:
                with unanswered_is_database_down():
                    await self._connection.execute("SELECT 1")
                continue
            if notice is None:
                raise DatabaseDown("the watching connection was lost")
            return notice


@contextmanager
def unanswered_is_database_down() -> Iterator[None]:
    """Lost, refused, timed out, or unable to serve: one error. Data that breaks a constraint is another matter."""
    try:
        yield
    except asyncpg.IntegrityConstraintViolationError:
        raise
    except UNANSWERED as error:
        raise DatabaseDown(f"{type(error).__name__}: {error}") from error


def tenant_of(row: asyncpg.Record) -> Tenant:
    return Tenant(
        id=row["tenant_id"],
        name=row["tenant_name"],
        disabled=row["tenant_disabled"],
        allow_all_models=row["allow_all_models"],
        models=frozenset(row["tenant_models"]),
        max_tokens=row["tenant_max_tokens"],
        limits=Limits(**{name: row[f"tenant_{name}"] for name in LIMITS}),
        bounds=bounds_of(row["tenant_bounds"]),
    )


def key_of(row: asyncpg.Record) -> Key:
    return Key(
        id=row["id"],
        prefix=row["prefix"],
        hash=row["hash"],
        tenant=tenant_of(row),
        owner=row["owner"],
        label=row["label"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        last_used_at=row["last_used_at"],
        disabled=row["disabled"],
        revoked_at=row["revoked_at"],
        models=None if row["models"] is None else frozenset(row["models"]),
        max_tokens=row["max_tokens"],
        limits=Limits(**{name: row[name] for name in LIMITS}),
        tiers=tiers_of(row["tiers"]),
        counts_as=row["counts_as"],
    )


@lru_cache(maxsize=256)  # most tenants have the usual ones
def bounds_of(found: str) -> Bounds:
    """What `tenant.bounds` holds; the schema sees to its form."""
    return Bounds.of(json.loads(found))


@lru_cache(maxsize=8)  # the same for every key until an operator changes it
def tiers_of(found: str | None) -> Tiers:
    """What `model_tier` holds, as one JSON object; None where it holds nothing."""
    of = {model: frozenset(map(Tier, tiers)) for model, tiers in json.loads(found or "{}").items()}
    others = of.pop(OTHERS, DEFAULT)
    return Tiers(MappingProxyType(of), others)
