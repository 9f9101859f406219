"""The ledger's tables. A batch is applied in one transaction, and applying it again changes nothing.

A request's three kinds of event arrive in any order; each statement inserts the row or fills in what it knows. Only the
statement that sets `settled_at` adds to `usage_daily`, so tokens are counted once however often an event comes.
Rows are touched in key order: two writers at once wait for each other instead of deadlocking.
"""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import asyncpg

from policy.rules.faults import DatabaseDown
from policy.rules.settlement import Seed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policy.rules.events import Batch

WRITER_LOCK = 0x7061_6464_6C67  # "paddlg": one writer at a time carries events to the ledger

_ADMISSIONS = """
INSERT INTO audit AS a (request_id, started_at, tenant_id, tenant, key_id, key_prefix, model, endpoint, decision,
                        reason, address)
SELECT e.id, to_timestamp(e.s::bigint / 1e6), e.t, e.tn, e.k, e.kp, e.model, e.ep, e.decision, e.reason, e.addr
FROM jsonb_to_recordset($1::text::jsonb) AS e(id text, s text, t bigint, tn text, k bigint, kp text, model text,
                                              ep text, decision text, reason text, addr text)
ORDER BY 2, 1
ON CONFLICT (started_at, request_id) DO UPDATE SET
    tenant_id = excluded.tenant_id, tenant = excluded.tenant, key_id = excluded.key_id,
    key_prefix = excluded.key_prefix, model = excluded.model, endpoint = excluded.endpoint,
    decision = excluded.decision, reason = excluded.reason, address = excluded.address
"""

_LOGS = """
INSERT INTO audit AS a (request_id, started_at, tenant_id, tenant, key_prefix, model, endpoint, method, decision,
                        reason, status, duration_us, upstream_us, bytes_in, bytes_out, address, flags)
SELECT e.id, to_timestamp(e.s::bigint / 1e6), e.t, e.tn, e.kp, e.model, e.ep, e.method,
       CASE WHEN e.reason = '' THEN 'allowed' ELSE 'denied' END, e.reason, e.st, e.us, e.up_us, e."in", e."out",
       e.addr, e.flags
FROM jsonb_to_recordset($1::text::jsonb) AS e(id text, s text, t bigint, tn text, kp text, model text, ep text,
                                              method text, reason text, st int, us bigint, up_us bigint, "in" bigint,
                                              "out" bigint, addr text, flags text)
ORDER BY 2, 1
ON CONFLICT (started_at, request_id) DO UPDATE SET
    method = excluded.method, status = excluded.status, duration_us = excluded.duration_us,
    upstream_us = excluded.upstream_us, bytes_in = excluded.bytes_in, bytes_out = excluded.bytes_out,
    address = excluded.address, flags = excluded.flags,
    endpoint = CASE WHEN a.endpoint = '' THEN excluded.endpoint ELSE a.endpoint END,
    reason = CASE WHEN a.reason = '' THEN excluded.reason ELSE a.reason END
"""

_SETTLEMENTS = """
WITH e AS (
    SELECT *, to_timestamp(s::bigint / 1e6) AS started_at
    FROM jsonb_to_recordset($1::text::jsonb) AS e(id text, s text, t bigint, tn text, k bigint, kp text, model text,
        ep text, day int, pt bigint, ct bigint, est boolean, outcome text, st int, ttft bigint, load bigint,
        prompt bigint, eval bigint)
), settled AS (
    INSERT INTO audit AS a (request_id, started_at, tenant_id, tenant, key_id, key_prefix, model, endpoint, decision,
                            outcome, status, prompt_tokens, completion_tokens, estimated, settled_at, ttft_us, load_ns,
                            prompt_ns, eval_ns)
    SELECT id, started_at, t, tn, k, kp, model, ep, 'allowed', coalesce(outcome, ''), st, pt, ct, est, now(), ttft,
           load, prompt, eval
    FROM e ORDER BY started_at, id
    ON CONFLICT (started_at, request_id) DO UPDATE SET
        outcome = excluded.outcome, status = coalesce(a.status, excluded.status),
        prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens,
        estimated = excluded.estimated, settled_at = excluded.settled_at, ttft_us = excluded.ttft_us,
        load_ns = excluded.load_ns, prompt_ns = excluded.prompt_ns, eval_ns = excluded.eval_ns
    WHERE a.settled_at IS NULL
    RETURNING request_id, started_at
)
INSERT INTO usage_daily AS u (day, tenant_id, key_id, model, requests, prompt_tokens, completion_tokens,
                              estimated_requests, load_ns, prompt_ns, eval_ns)
SELECT date '1970-01-01' + e.day, e.t, e.k, e.model, count(*), sum(e.pt), sum(e.ct), count(*) FILTER (WHERE e.est),
       coalesce(sum(e.load), 0), coalesce(sum(e.prompt), 0), coalesce(sum(e.eval), 0)
FROM e JOIN settled ON settled.request_id = e.id AND settled.started_at = e.started_at
GROUP BY e.day, e.t, e.k, e.model ORDER BY e.t, e.k, e.model, e.day
ON CONFLICT (tenant_id, key_id, model, day) DO UPDATE SET
    requests = u.requests + excluded.requests, prompt_tokens = u.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = u.completion_tokens + excluded.completion_tokens,
    estimated_requests = u.estimated_requests + excluded.estimated_requests, load_ns = u.load_ns + excluded.load_ns,
    prompt_ns = u.prompt_ns + excluded.prompt_ns, eval_ns = u.eval_ns + excluded.eval_ns
"""

_REFUSALS = """
INSERT INTO audit AS a (request_id, started_at, decision, reason, address, requests)
SELECT 'refusals:' || e.minute || ':' || e.addr, to_timestamp(e.minute * 60), 'denied', 'refusals_past_rate', e.addr,
       e.count
FROM jsonb_to_recordset($1::text::jsonb) AS e(minute bigint, addr text, count int)
ON CONFLICT (started_at, request_id) DO UPDATE SET requests = greatest(a.requests, excluded.requests)
"""

_SEED = """
SELECT coalesce(sum(prompt_tokens + completion_tokens) FILTER (WHERE day = $2), 0)::bigint AS day,
       coalesce(sum(prompt_tokens + completion_tokens) FILTER (WHERE day >= date_trunc('month', $2::date)), 0)::bigint
           AS month,
       coalesce(sum(prompt_tokens + completion_tokens), 0)::bigint AS total
FROM usage_daily WHERE
"""


class LedgerTables:
    """One connection that writes, held for as long as the advisory lock; `seed` reads through it or another."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    async def lead(self) -> bool:
        """Become, or still be, the one writer. The lock is the connection's: a dead writer gives it up by dying."""
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(self._url, timeout=2, command_timeout=30)
                self._leading = False
            if not self._leading:
                self._leading = bool(await self._connection.fetchval("SELECT pg_try_advisory_lock($1)", WRITER_LOCK))
            return self._leading
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            await self.close()
            raise DatabaseDown(type(error).__name__) from error

    _leading = False

    async def apply(self, batch: Batch) -> None:
        """Write a batch; all of it or nothing."""
        connection = self._held()
        try:
            async with connection.transaction():
                for statement, events in (
                    (_ADMISSIONS, batch.admissions),
                    (_LOGS, batch.logs),
                    (_SETTLEMENTS, batch.settlements),
                ):
                    if events:
                        await connection.execute(statement, _json(events.values()))
        except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
            await self.close()
            raise DatabaseDown(type(error).__name__) from error

    async def count_refusals(self, rows: Iterable[tuple[int, str, int]]) -> None:
        """Write (minute since the epoch, address, refusals past the rate) rows."""
        facts = [{"minute": minute, "addr": address, "count": count} for minute, address, count in rows]
        await self._held().execute(_REFUSALS, json.dumps(facts))

    async def arrange(self, now: datetime, retention_days: int) -> None:
        """Have partitions for this month and the next, and none that is wholly older than the retention."""
        connection = self._held()
        month = date(now.year, now.month, 1)
        for _ in range(2):
            following = date(month.year + month.month // 12, month.month % 12 + 1, 1)
            name = f"audit_{month:%Y%m}"
            if await connection.fetchval("SELECT to_regclass($1)", name) is None:
                async with connection.transaction():
                    # What came before the partition was there waits in the default one: move it over.
                    await connection.execute(f"CREATE TABLE {name} (LIKE audit INCLUDING DEFAULTS)")
                    await connection.execute(
                        f"WITH moved AS (DELETE FROM audit_default WHERE started_at >= '{month}'"  # noqa: S608  # dates of our own making
                        f" AND started_at < '{following}' RETURNING *) INSERT INTO {name} SELECT * FROM moved"
                    )
                    await connection.execute(
                        f"ALTER TABLE audit ATTACH PARTITION {name} FOR VALUES FROM ('{month} 00:00+00') "
                        f"TO ('{following} 00:00+00')"
                    )
            month = following
        oldest = datetime.fromtimestamp(now.timestamp() - retention_days * 86400, UTC)
        for record in await connection.fetch(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = 'audit'::regclass AND c.relname ~ '^audit_[0-9]{6}$' AND c.relname < $1",
            f"audit_{oldest:%Y%m}",
        ):
            await connection.execute(f'DROP TABLE "{record["relname"]}"')

    async def close(self) -> None:
        connection, self._connection, self._leading = self._connection, None, False
        if connection is not None and not connection.is_closed():
            connection.terminate()

    def _held(self) -> asyncpg.Connection[asyncpg.Record]:
        if self._connection is None or self._connection.is_closed():
            raise DatabaseDown("the ledger's connection is closed")
        return self._connection


async def seeds(pool: Any, tenant_id: int, key_id: int, today: date) -> tuple[Seed, Seed]:
    """What the ledger says a tenant and a key have used, for `today` (UTC)."""
    found = []
    for condition, value in (("tenant_id = $1", tenant_id), ("tenant_id = $3 AND key_id = $1", key_id)):
        extra = (tenant_id,) if "$3" in condition else ()
        row = await pool.fetchrow(_SEED + condition, value, today, *extra)
        found.append(
            Seed(
                day=(today - date(1970, 1, 1)).days,
                day_tokens=row["day"],
                month=today.year * 100 + today.month,
                month_tokens=row["month"],
                total=row["total"],
            )
        )
    return found[0], found[1]


def _json(events: Iterable[dict[str, Any]]) -> str:
    # PostgreSQL's text has no NUL; a hostile path or model name may.
    return json.dumps(list(events)).replace("\\u0000", "\\ufffd")
