"""What the ledger knows of a tenant and a key, for counters that the counter store has not, or not any more."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from policy.rules.settlement import Known, Seed
from policy.stores.redis import shard_of

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

# Held by the writer from before it reads events until they are committed, and shared by whoever sums them up.
SEEDS_LOCK = 0x7061_6464_7364  # "paddsd"

_SEEDS = """
WITH used AS (
    SELECT key_id = $2 OR key_id IN (SELECT id FROM api_key WHERE counts_as = $2) AS of_key, day,
           prompt_tokens + completion_tokens AS tokens
    FROM usage_daily WHERE tenant_id = $1
)
SELECT coalesce(sum(tokens) FILTER (WHERE day = $3), 0)::bigint AS day,
       coalesce(sum(tokens) FILTER (WHERE day >= $4), 0)::bigint AS month,
       coalesce(sum(tokens), 0)::bigint AS total,
       coalesce(sum(tokens) FILTER (WHERE of_key AND day = $3), 0)::bigint AS key_day,
       coalesce(sum(tokens) FILTER (WHERE of_key AND day >= $4), 0)::bigint AS key_month,
       coalesce(sum(tokens) FILTER (WHERE of_key), 0)::bigint AS key_total,
       (SELECT epoch FROM ledger_position WHERE shard = $5) AS epoch,
       (SELECT event FROM ledger_position WHERE shard = $5) AS event
FROM used
"""


async def seeds(
    connection: asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy, tenant_id: int, key_id: int, today: date
) -> Known:
    """What a tenant and a key, with those that count as it, have used as of `today` (UTC), and up to which event."""
    async with connection.transaction():
        # A statement of its own: the next one sees what was committed before the lock was given.
        await connection.execute("SELECT pg_advisory_xact_lock_shared($1)", SEEDS_LOCK)
        row = await connection.fetchrow(_SEEDS, tenant_id, key_id, today, today.replace(day=1), shard_of(tenant_id))
    assert row is not None  # noqa: S101  # sums without groups are always one row
    day, month = (today - date(1970, 1, 1)).days, today.year * 100 + today.month
    return Known(
        tenant=Seed(day, row["day"], month, row["month"], row["total"]),
        key=Seed(day, row["key_day"], month, row["key_month"], row["key_total"]),
        epoch=row["epoch"] or "",
        event=row["event"] or "0-0",
    )
