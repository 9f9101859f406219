"""What the ledger knows of requests that Envoy's file tells of, and how far that file was read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from policy.stores.postgres import Postgres


class RecoveryTables:
    """Reads through the shared pool; DatabaseDown where PostgreSQL does not answer. `source` names the file."""

    def __init__(self, postgres: Postgres, source: str) -> None:
        self._postgres = postgres
        self._source = source

    async def told(self, request_ids: Collection[str]) -> set[str]:
        """Those of the requests whose end is in the ledger."""
        async with self._postgres.connection() as connection:
            rows = await connection.fetch(
                "SELECT request_id FROM audit WHERE request_id = ANY ($1) AND duration_us IS NOT NULL",
                list(request_ids),
            )
        return {row["request_id"] for row in rows}

    async def counted(self, minutes: Collection[tuple[int, str]]) -> set[tuple[int, str]]:
        """Those (minute since the epoch, address) whose refusals past the rate stand in a row of their own."""
        if not minutes:
            return set()
        names = {f"refusals:{minute}:{address}": (minute, address) for minute, address in minutes}
        first = datetime.fromtimestamp(min(minute for minute, _ in minutes) * 60, UTC)
        async with self._postgres.connection() as connection:
            rows = await connection.fetch(
                "SELECT request_id FROM audit WHERE request_id = ANY ($1) AND started_at >= $2", list(names), first
            )
        return {names[row["request_id"]] for row in rows}

    async def mark(self) -> str:
        """Where reading ended; "" for never begun."""
        async with self._postgres.connection() as connection:
            found = await connection.fetchval("SELECT mark FROM access_log_mark WHERE source = $1", self._source)
        return str(found or "")

    async def set_mark(self, mark: str) -> None:
        async with self._postgres.connection() as connection:
            await connection.execute(
                "INSERT INTO access_log_mark (source, mark) VALUES ($1, $2)"
                " ON CONFLICT (source) DO UPDATE SET mark = excluded.mark",
                self._source,
                mark,
            )
