"""The ledger's tables. Events are written in one transaction, and writing them again changes nothing.

A request's three kinds of event arrive in any order; each statement inserts the row or fills in what it knows, and the
row that comes of it is the same. Only the statement that sets `settled_at` adds to `usage_daily`, so tokens are counted
once however often an event comes. Rows are touched in key order: two writers at once wait for each other instead of
deadlocking.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from policy.rules.events import Applied, Charge, batch
from policy.rules.faults import DatabaseDown
from policy.stores import ledger_partitions
from policy.stores.ledger_seeds import SEEDS_LOCK, seeds
from policy.stores.postgres import UNANSWERED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from datetime import datetime

    from policy.rules.events import Batch, Event, Waiting

__all__ = ["WRITER_LOCK", "LedgerTables", "seeds"]

WRITER_LOCK = 0x7061_6464_6C67  # "paddlg": one writer at a time carries events to the ledger
# A writer that stands still (stopped, or waiting for a store that hangs) loses its place to another.
STANDSTILL_SECONDS = 15

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
    -- What Envoy answered in spite of an admission (its check timed out, say) stays a refusal.
    decision = CASE WHEN excluded.reason = '' AND a.reason <> '' THEN 'denied' ELSE excluded.decision END,
    reason = CASE WHEN excluded.reason = '' THEN a.reason ELSE excluded.reason END,
    address = CASE WHEN a.duration_us IS NULL THEN excluded.address ELSE a.address END
"""

_LOGS = """
INSERT INTO audit AS a (request_id, started_at, tenant_id, tenant, key_prefix, model, endpoint, method, decision,
                        reason, outcome, status, duration_us, upstream_us, bytes_in, bytes_out, address, flags)
SELECT e.id, to_timestamp(e.s::bigint / 1e6), e.t, e.tn, e.kp, e.model, e.ep, e.method,
       CASE WHEN e.reason = '' THEN 'allowed' ELSE 'denied' END, e.reason,
       CASE WHEN e.nf AND e.reason = '' THEN 'not_forwarded' ELSE '' END, e.st, e.us, e.up_us, e."in", e."out",
       e.addr, e.flags
FROM jsonb_to_recordset($1::text::jsonb) AS e(id text, s text, t bigint, tn text, kp text, model text, ep text,
                                              method text, reason text, nf boolean, st int, us bigint, up_us bigint,
                                              "in" bigint, "out" bigint, addr text, flags text)
ORDER BY 2, 1
ON CONFLICT (started_at, request_id) DO UPDATE SET
    method = excluded.method, duration_us = excluded.duration_us,
    upstream_us = coalesce(excluded.upstream_us, a.upstream_us),
    bytes_in = excluded.bytes_in, bytes_out = excluded.bytes_out, address = excluded.address, flags = excluded.flags,
    status = excluded.status,
    endpoint = CASE WHEN a.endpoint = '' THEN excluded.endpoint ELSE a.endpoint END,
    reason = CASE WHEN a.reason = '' THEN excluded.reason ELSE a.reason END,
    decision = CASE WHEN excluded.reason = '' THEN a.decision ELSE 'denied' END,
    outcome = CASE WHEN a.outcome = '' THEN excluded.outcome ELSE a.outcome END
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
        tenant_id = excluded.tenant_id, tenant = excluded.tenant, key_id = excluded.key_id,
        key_prefix = excluded.key_prefix, model = excluded.model, endpoint = excluded.endpoint,
        outcome = CASE WHEN excluded.outcome = '' THEN a.outcome ELSE excluded.outcome END,
        status = CASE WHEN a.duration_us IS NULL THEN excluded.status ELSE a.status END,
        prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens,
        estimated = excluded.estimated, settled_at = excluded.settled_at, ttft_us = excluded.ttft_us,
        load_ns = excluded.load_ns, prompt_ns = excluded.prompt_ns, eval_ns = excluded.eval_ns
    WHERE a.settled_at IS NULL
    RETURNING request_id, started_at
), charged AS (
    SELECT e.* FROM e JOIN settled ON settled.request_id = e.id AND settled.started_at = e.started_at
), summed AS (
    INSERT INTO usage_daily AS u (day, tenant_id, key_id, model, requests, prompt_tokens, completion_tokens,
                                  estimated_requests, load_ns, prompt_ns, eval_ns)
    SELECT date '1970-01-01' + day, t, k, model, count(*), sum(pt), sum(ct), count(*) FILTER (WHERE est),
           coalesce(sum(load), 0), coalesce(sum(prompt), 0), coalesce(sum(eval), 0)
    FROM charged GROUP BY day, t, k, model ORDER BY t, k, model, day
    ON CONFLICT (tenant_id, key_id, model, day) DO UPDATE SET
        requests = u.requests + excluded.requests, prompt_tokens = u.prompt_tokens + excluded.prompt_tokens,
        completion_tokens = u.completion_tokens + excluded.completion_tokens,
        estimated_requests = u.estimated_requests + excluded.estimated_requests, load_ns = u.load_ns + excluded.load_ns,
        prompt_ns = u.prompt_ns + excluded.prompt_ns, eval_ns = u.eval_ns + excluded.eval_ns
)
SELECT tn, model, coalesce(outcome, ''), NOT est, count(*), sum(pt)::bigint, sum(ct)::bigint FROM charged
GROUP BY 1, 2, 3, 4
"""

_QUARANTINE = """
INSERT INTO ledger_quarantine (shard, epoch, event, reason, fields) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING
"""

_POSITIONS = """
INSERT INTO ledger_position AS p (shard, epoch, event)
SELECT * FROM jsonb_to_recordset($1::text::jsonb) AS e(shard int, epoch text, event text)
ON CONFLICT (shard) DO UPDATE SET epoch = excluded.epoch, event = excluded.event
"""

_REFUSALS = """
INSERT INTO audit AS a (request_id, started_at, decision, reason, address, requests)
SELECT CASE WHEN open THEN 'answers:' ELSE 'refusals:' END || e.minute || ':' || e.addr, to_timestamp(e.minute * 60),
       CASE WHEN open THEN 'allowed' ELSE 'denied' END,
       CASE WHEN open THEN 'answers_past_rate' ELSE 'refusals_past_rate' END, e.addr, e.count
FROM jsonb_to_recordset($1::text::jsonb) AS e(minute bigint, addr text, open boolean, count int)
ON CONFLICT (started_at, request_id) DO UPDATE SET requests = greatest(a.requests, excluded.requests)
"""

_NEVER_FORWARDED = """
SELECT a.request_id FROM audit a
JOIN unnest($1::text[], $2::bigint[]) AS e (id, s) ON a.request_id = e.id AND a.started_at = to_timestamp(e.s / 1e6)
WHERE a.outcome = 'not_forwarded' OR (a.duration_us IS NOT NULL AND a.decision = 'denied')
"""

AT_ONCE = 32  # events written as JSON before requests have their turn

# What PostgreSQL says when an event is at fault and not the database: wrong data, a broken constraint, a text that no
# index takes, the same row twice in one statement.
_POISON = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.CardinalityViolationError,
)


class LedgerTables:
    """One connection that writes, held for as long as the advisory lock."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._leading = False

    async def lead(self) -> bool:
        """Become, or still be, the one writer. The lock is the connection's: a dead writer gives it up by dying."""
        async with self._fault_closes():
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(
                    self._url,
                    timeout=2,
                    command_timeout=30,
                    server_settings={"idle_in_transaction_session_timeout": f"{STANDSTILL_SECONDS}s"},
                )
                self._leading = False
            if not self._leading:
                self._leading = bool(await self._connection.fetchval("SELECT pg_try_advisory_lock($1)", WRITER_LOCK))
            return self._leading

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """One transaction, around reading events as well as writing them: no seed is summed up while it runs, because
        what it is about to write may have left the counter store meanwhile."""
        async with self._fault_closes():
            connection = self._held()
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", SEEDS_LOCK)
                yield

    async def apply(self, events: Sequence[Event]) -> Applied:
        """Write events, inside `writing`: what they charge counts once that is committed. Those that no table takes
        come back, with what PostgreSQL said of them."""
        connection = self._held()
        try:
            async with connection.transaction():
                return Applied(await _write(connection, batch(events)), [])
        except _POISON as error:
            if len(events) == 1:
                return Applied([], [(events[0], f"{type(error).__name__}: {error}")])
        half = len(events) // 2
        first, second = await self.apply(events[:half]), await self.apply(events[half:])
        return Applied(first.charges + second.charges, first.refused + second.refused)

    async def quarantine(self, waiting: Waiting, index: int, reason: str) -> None:
        """Keep an entry that cannot be applied, inside `writing`."""
        number, fields = waiting.entries[index]
        text = json.dumps({name.decode("latin-1"): value.decode("latin-1") for name, value in fields.items()})
        await self._held().execute(
            _QUARANTINE, waiting.shard, waiting.epoch, number.decode(), reason[:500], text.replace("\0", "")
        )

    async def advance(self, carried: Iterable[Waiting]) -> None:
        """Note how far each shard has been carried, inside `writing`."""
        positions = [{"shard": one.shard, "epoch": one.epoch, "event": one.last} for one in carried]
        await self._held().execute(_POSITIONS, json.dumps(positions))

    async def count_refusals(self, rows: Iterable[tuple[int, str, bool, int]]) -> None:
        """Write (minute since the epoch, address, whether these were answers for anybody, how many) rows."""
        facts = [
            {"minute": minute, "addr": address, "open": open_, "count": count} for minute, address, open_, count in rows
        ]
        async with self._fault_closes():
            await self._held().execute(_REFUSALS, json.dumps(facts))

    async def never_forwarded(self, requests: Sequence[tuple[str, int]]) -> frozenset[str]:
        """Of these requests (id, start in µs) those of which Envoy's log says that no upstream ever saw them."""
        async with self._fault_closes():
            rows = await self._held().fetch(
                _NEVER_FORWARDED, [name for name, _ in requests], [started for _, started in requests]
            )
            return frozenset(row["request_id"] for row in rows)

    async def arrange(self, now: datetime, retention_days: int) -> None:
        """Have a partition for every month that needs one, and none that is wholly older than the retention."""
        async with self._fault_closes():
            await ledger_partitions.arrange(self._held(), now, retention_days)

    async def close(self) -> None:
        connection, self._connection, self._leading = self._connection, None, False
        if connection is not None and not connection.is_closed():
            connection.terminate()

    def _held(self) -> asyncpg.Connection[asyncpg.Record]:
        if self._connection is None or self._connection.is_closed():
            raise DatabaseDown("the ledger's connection is closed")
        return self._connection

    @asynccontextmanager
    async def _fault_closes(self) -> AsyncIterator[None]:
        """Whatever PostgreSQL cannot do now is DatabaseDown, and the connection (and with it the lead) is given up: a
        full disk, a server that became a replica, a lost connection are tried again on a new one."""
        try:
            yield
        except UNANSWERED as error:
            await self.close()
            raise DatabaseDown(f"{type(error).__name__}: {error}"[:200]) from error
        except BaseException:
            # Cancelled, or a fault elsewhere while a transaction was open: what the connection is in the middle of is
            # not known here.
            if self._connection is not None and self._connection.is_in_transaction():
                await self.close()
            raise


async def _write(connection: asyncpg.Connection[asyncpg.Record], events: Batch) -> list[Charge]:
    for statement, facts in ((_ADMISSIONS, events.admissions), (_LOGS, events.logs)):
        if facts:
            await connection.execute(statement, await _json(facts.values()))
    if not events.settlements:
        return []
    return [Charge(*row) for row in await connection.fetch(_SETTLEMENTS, await _json(events.settlements.values()))]


async def _json(facts: Iterable[dict[str, Any]]) -> str:
    """An array of them, written in pieces between which others have their turn."""
    written: list[str] = []
    for fact in facts:
        written.append(json.dumps(fact))
        if len(written) % AT_ONCE == 0:
            await asyncio.sleep(0)
    return f"[{','.join(written)}]"
