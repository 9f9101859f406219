"""Partitions of the audit table: one a month, made ahead of time and dropped whole when they are old enough.

What arrives for a month without a partition waits in the default one and moves over when its partition is made. Months
are UTC, whatever the server's time zone is.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg

_MONTHS_WAITING = """
SELECT DISTINCT date_trunc('month', started_at AT TIME ZONE 'UTC')::date AS month FROM audit_default
WHERE started_at >= $1 AND started_at < $2
"""
_PARTITIONS = """
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'audit'::regclass AND c.relname ~ '^audit_[0-9]{6}$' AND c.relname < $1
"""


async def arrange(connection: asyncpg.Connection[asyncpg.Record], now: datetime, retention_days: int) -> None:
    """Make what is missing for this month, the next, and whatever waits in the default partition; drop what is wholly
    older than `retention_days`."""
    oldest = _month(now - timedelta(days=retention_days))
    for month in await _missing(connection, _month(now), oldest):
        await _make(connection, month)
    async with connection.transaction():
        # Somebody who reads the table would make everybody who writes wait behind this: rather try again later.
        await connection.execute("SET LOCAL lock_timeout = '2s'")
        for record in await connection.fetch(_PARTITIONS, f"audit_{oldest:%Y%m}"):
            await connection.execute(f'DROP TABLE "{record["relname"]}"')
        await connection.execute("DELETE FROM audit_default WHERE started_at < $1", _start(oldest))


async def _missing(connection: asyncpg.Connection[asyncpg.Record], this_month: date, oldest: date) -> list[date]:
    waiting = await connection.fetch(_MONTHS_WAITING, _start(oldest), _start(this_month))
    months = {this_month, _following(this_month), *(record["month"] for record in waiting)}
    there = {record["relname"] for record in await connection.fetch(_PARTITIONS, "audit_x")}
    return sorted(month for month in months if f"audit_{month:%Y%m}" not in there)


async def _make(connection: asyncpg.Connection[asyncpg.Record], month: date) -> None:
    name = f"audit_{month:%Y%m}"
    start, end = _start(month), _start(_following(month))
    async with connection.transaction():
        await connection.execute("SET LOCAL lock_timeout = '2s'")
        await connection.execute(f"CREATE TABLE {name} (LIKE audit INCLUDING DEFAULTS)")
        await connection.execute(
            "WITH moved AS (DELETE FROM audit_default WHERE started_at >= $1 AND started_at < $2 RETURNING *)"  # noqa: S608  # a name of our own making
            f" INSERT INTO {name} SELECT * FROM moved",
            start,
            end,
        )
        await connection.execute(
            f"ALTER TABLE audit ATTACH PARTITION {name}"
            f" FOR VALUES FROM ('{start.isoformat()}') TO ('{end.isoformat()}')"
        )


def _month(moment: datetime) -> date:
    return moment.astimezone(UTC).date().replace(day=1)


def _following(month: date) -> date:
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def _start(month: date) -> datetime:
    return datetime(month.year, month.month, 1, tzinfo=UTC)
