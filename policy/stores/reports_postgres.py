"""What operators ask of the ledger: what was used, and what became of a request. Read-only, on a connection of its own.

Usage comes from `usage_daily`, which grows with tenants, keys and models and not with requests; single requests come
from `audit`, newest first, through its partitions and indexes. A report may take longer than a look-up on the hot path.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import asyncpg

from policy.stores.postgres import unanswered_is_database_down

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import date, datetime

_CONNECT_SECONDS = 15.0  # a person waits
_REPORT_SECONDS = 60.0

# A dimension of a usage report, and what it is in the query. Who is no longer known keeps its number.
DIMENSIONS = {
    "tenant": "coalesce(t.name, '#' || u.tenant_id)",
    "key": "coalesce(k.prefix, CASE WHEN u.key_id < 0 THEN 'sessions' ELSE '#' || u.key_id END)",
    "model": "u.model",
    "day": "u.day",
}
_SUMS = ("requests", "prompt_tokens", "completion_tokens", "estimated_requests", "load_ns", "prompt_ns", "eval_ns")
_USAGE = """
    FROM usage_daily u LEFT JOIN tenant t ON t.id = u.tenant_id LEFT JOIN api_key k ON k.id = u.key_id
    WHERE u.day BETWEEN $1 AND $2 AND ($3::bigint IS NULL OR u.tenant_id = $3)
        AND ($4::bigint IS NULL OR u.key_id = $4) AND ($5::text IS NULL OR u.model = $5)
"""


@dataclass(frozen=True, slots=True)
class Used:
    """What one group used, or all of them. Tokens are as charged; times are the upstream's own, in nanoseconds."""

    group: tuple[object, ...]  # in the order asked for; a day is a date
    requests: int
    prompt_tokens: int
    completion_tokens: int
    estimated_requests: int
    load_ns: int
    prompt_ns: int
    eval_ns: int


@dataclass(frozen=True, slots=True)
class Audited:
    """One audit row, named and measured as in the table; None is not (yet) known."""

    request_id: str
    started_at: datetime
    tenant: str
    key_prefix: str
    model: str
    endpoint: str
    method: str
    decision: str  # allowed or denied
    reason: str  # "" of an allowed request
    outcome: str  # how an allowed request's answer ended; "" where nothing was metered
    status: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    estimated: bool | None
    settled_at: datetime | None
    ttft_us: int | None
    duration_us: int | None
    upstream_us: int | None
    load_ns: int | None
    prompt_ns: int | None
    eval_ns: int | None
    bytes_in: int | None
    bytes_out: int | None
    address: str
    flags: str
    requests: int  # more than 1: refusals past the rate, of one address and minute


_COLUMNS = ", ".join(field.name for field in fields(Audited))
_OF_REQUEST = f"SELECT {_COLUMNS} FROM audit WHERE request_id = $1 ORDER BY started_at DESC"  # noqa: S608  # constant
# `reason` also finds outcomes, and "allowed": the words of all three differ.
_AUDIT = f"""
    SELECT {_COLUMNS} FROM audit
    WHERE started_at >= $1 AND ($2::timestamptz IS NULL OR started_at < $2)
        AND ($3::bigint IS NULL OR tenant_id = $3) AND ($4::text IS NULL OR key_prefix = $4)
        AND ($5::text IS NULL OR model = $5) AND ($6::int IS NULL OR status = $6)
        AND ($7::text IS NULL OR reason = $7 OR outcome = $7 OR ($7 = 'allowed' AND decision = 'allowed'))
    ORDER BY started_at DESC, request_id DESC LIMIT $8
"""  # noqa: S608  # constant


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which audit rows; None is any."""

    since: datetime
    until: datetime | None = None  # not included
    tenant_id: int | None = None
    key_prefix: str | None = None
    model: str | None = None  # canonical
    status: int | None = None
    reason: str | None = None
    limit: int = 100


class Reports:
    """Asks on one connection. DatabaseDown when there is no answer."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Reports]:
        """Reports from the database at `url`; nothing can be changed through them."""
        with unanswered_is_database_down():
            connection = await asyncpg.connect(
                url,
                timeout=_CONNECT_SECONDS,
                command_timeout=_REPORT_SECONDS,
                server_settings={"default_transaction_read_only": "on", "application_name": "paddock reports"},
            )
        try:
            yield cls(connection)
        finally:
            connection.terminate()

    async def tenant_id(self, name: str) -> int | None:
        """Of the tenant of this name in whatever case."""
        return await self._id("SELECT id FROM tenant WHERE lower(name) = lower($1)", name)

    async def key_id(self, prefix: str) -> int | None:
        return await self._id("SELECT id FROM api_key WHERE prefix = $1", prefix)

    async def usage(
        self,
        by: Sequence[str],
        since: date,
        until: date,
        *,
        tenant_id: int | None = None,
        key_id: int | None = None,
        model: str | None = None,
    ) -> list[Used]:
        """What was used from `since` to the end of `until` (UTC days), by DIMENSIONS, sorted by them."""
        groups = ", ".join(DIMENSIONS[name] for name in by)
        places = ", ".join(str(place) for place in range(1, len(by) + 1))
        sums = ", ".join(f"sum(u.{name})::bigint AS {name}" for name in _SUMS)
        query = f"SELECT {groups}, {sums} {_USAGE} GROUP BY {places} ORDER BY {places}"  # names of our own
        with unanswered_is_database_down():
            rows = await self._connection.fetch(query, since, until, tenant_id, key_id, model)
        return [Used(tuple(row[: len(by)]), *row[len(by) :]) for row in rows]

    async def request(self, request_id: str) -> list[Audited]:
        """The rows of a request id: one, or none yet."""
        with unanswered_is_database_down():
            return [Audited(*row) for row in await self._connection.fetch(_OF_REQUEST, request_id)]

    async def audit(self, wanted: Wanted) -> list[Audited]:
        """Rows, newest first."""
        with unanswered_is_database_down():
            rows = await self._connection.fetch(
                _AUDIT, wanted.since, wanted.until, wanted.tenant_id, wanted.key_prefix, wanted.model, wanted.status,
                wanted.reason, wanted.limit,
            )  # fmt: skip
        return [Audited(*row) for row in rows]

    async def _id(self, query: str, name: str) -> int | None:
        with unanswered_is_database_down():
            found: int | None = await self._connection.fetchval(query, name)
        return found
