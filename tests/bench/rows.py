"""Ledger rows by the million, in the partition that new rows go into too, so that their indexes are the large ones.

Rows come by binary COPY into a table that the same transaction made, frozen as they arrive; its indexes are built once,
side by side, when all rows are there. Then it takes the place of the month's partition. Row by row through the indexes
the same would take a quarter of an hour. Request ids are random, as real ones are: a new row's place in the index is
anywhere in it.
"""

from __future__ import annotations

import asyncio
import os
import struct
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TENANTS, KEYS = 1000, 100_000  # that the rows speak of
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # of PostgreSQL's binary timestamps, in microseconds
_AT_ONCE = 4096
_COLUMNS = (
    "request_id", "started_at", "tenant_id", "key_id", "tenant", "key_prefix", "model", "endpoint", "method",
    "decision", "status", "prompt_tokens", "completion_tokens", "estimated", "settled_at", "ttft_us", "duration_us",
    "upstream_us", "bytes_in", "bytes_out", "address",
)  # fmt: skip  # the names of one row
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_ROW = struct.Struct(f">hi8s16s12s{'iq' * 3}i10s")  # up to the tenant's name; the rest is alike in every row
_INDEXES = (
    "CREATE UNIQUE INDEX grown_pkey ON grown (started_at, request_id)",
    "CREATE INDEX ON grown (request_id)",
    "CREATE INDEX ON grown (tenant_id, started_at)",
)
_USAGE = """
INSERT INTO usage_daily (day, tenant_id, key_id, model, requests, prompt_tokens, completion_tokens, estimated_requests,
                         load_ns, prompt_ns, eval_ns)
SELECT current_date - (n / $2::int), 1 + n % $2::int % $3::int, 1000000 + n % $2::int, 'llama3.1:8b', 10, 60, 70, 0,
       1, 1, 1
FROM generate_series(1, $1::int) n ON CONFLICT DO NOTHING
"""


async def fill(url: str, rows: int, now: datetime) -> None:
    """Put so many rows into this month's partition of `audit`, and a tenth as many into `usage_daily`. The partition's
    own rows are dropped; nothing may be writing."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("ALTER SYSTEM SET max_wal_size = '16GB'")  # no checkpoint in the middle
        await connection.execute("SELECT pg_reload_conf()")
        await connection.execute("SET synchronous_commit = off")
        async with connection.transaction():
            await connection.execute("CREATE TABLE grown (LIKE audit INCLUDING DEFAULTS)")
            source = _copied(rows, now)
            await connection.copy_to_table("grown", source=source, columns=_COLUMNS, format="binary", freeze=True)
        await asyncio.gather(*(_index(url, statement) for statement in _INDEXES))
        await _take_the_place(connection, now)
        await connection.execute(_USAGE, rows // 10, KEYS, TENANTS)
        await connection.execute("VACUUM (ANALYZE) audit, usage_daily")
        await connection.execute("ALTER SYSTEM RESET max_wal_size")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def _copied(rows: int, now: datetime) -> AsyncIterator[bytes]:
    first = _microseconds(now.replace(day=1, hour=0, minute=0, second=0, microsecond=0))
    last = _microseconds(now)
    names = [b"grown-%04d" % n for n in range(TENANTS)]
    rest = b"".join(map(_field, _same_for_all(now)))
    pack, fields, id_middle = _ROW.pack, len(_COLUMNS), b"-0000-4000-8000-"
    yield _HEADER
    for begin in range(0, rows, _AT_ONCE):
        count = min(_AT_ONCE, rows - begin)
        digits = os.urandom(10 * count).hex().encode()
        pieces = []
        for n in range(count):
            at, number = 20 * n, begin + n
            tenant = number % TENANTS
            moment = first + (last - first) * number // rows
            pieces.append(
                pack(
                    fields, 36, digits[at : at + 8], id_middle, digits[at + 8 : at + 20], 8, moment, 8, 1 + tenant,
                    8, 1_000_000 + number % KEYS, 10, names[tenant],
                )
            )  # fmt: skip  # a field's length stands before it
            pieces.append(rest)
        yield b"".join(pieces)
    yield _TRAILER


def _same_for_all(now: datetime) -> tuple[bytes, ...]:
    """The columns after the tenant's name."""
    number = struct.Struct(">q").pack
    return (
        b"nz_grown0000", b"llama3.1:8b", b"/api/chat", b"POST", b"allowed", struct.pack(">i", 200), number(6),
        number(7), b"\0", number(_microseconds(now)), number(900), number(1000), number(800), number(120), number(330),
        b"127.0.0.1",
    )  # fmt: skip  # as in _COLUMNS


def _field(value: bytes) -> bytes:
    return struct.pack(">i", len(value)) + value


def _microseconds(moment: datetime) -> int:
    since = moment - _EPOCH
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


async def _index(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET synchronous_commit = off; SET maintenance_work_mem = '1GB'")
        await connection.execute(statement)
    finally:
        await connection.close()


async def _take_the_place(connection: asyncpg.Connection[asyncpg.Record], now: datetime) -> None:
    name = f"audit_{now:%Y%m}"
    start = datetime(now.year, now.month, 1, tzinfo=UTC)
    end = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    async with connection.transaction():
        await connection.execute(f"DROP TABLE IF EXISTS {name}")
        await connection.execute(f"ALTER TABLE grown RENAME TO {name}")
        await connection.execute(f"ALTER TABLE {name} ADD CONSTRAINT {name}_pkey PRIMARY KEY USING INDEX grown_pkey")
        bounds = f"FROM ('{start.isoformat()}') TO ('{end.isoformat()}')"
        await connection.execute(f"ALTER TABLE audit ATTACH PARTITION {name} FOR VALUES {bounds}")
