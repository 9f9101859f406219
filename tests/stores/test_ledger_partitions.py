"""The audit table's partitions: made ahead, filled and dropped by UTC months."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from policy.stores.ledger_postgres import LedgerTables
from tests.postgresql import execute


def test_partitions_are_made_filled_and_dropped_by_utc_months(database: str) -> None:
    async def scenario() -> None:
        # A server in another time zone: its midnight is not ours.
        name = database.split("/")[3].split("?")[0]
        await execute(database, f"ALTER DATABASE {name} SET timezone TO 'Pacific/Auckland'")
        tables = LedgerTables(database)
        assert await tables.lead()
        rows = ["2026-10-31T23:59:59.9+00", "2026-11-01T00:00+00", "2026-11-30T23:59+00", "2027-03-01T00:00+00"]
        for number, start in enumerate(rows):
            await execute(
                database,
                "INSERT INTO audit (request_id, started_at, decision) VALUES ($1, $2, 'denied')",
                str(number),
                datetime.fromisoformat(start),
            )
        await tables.arrange(datetime(2026, 11, 5, tzinfo=UTC), 400)
        assert await partitions(database) == {
            "audit_default": 1, "audit_202610": 1, "audit_202611": 2, "audit_202612": 0,
        }  # fmt: skip
        await tables.arrange(datetime(2026, 11, 5, tzinfo=UTC), 400)  # again: nothing to do
        await tables.arrange(datetime(2027, 2, 28, tzinfo=UTC), 100)
        assert await partitions(database) == {
            "audit_default": 0, "audit_202611": 2, "audit_202612": 0, "audit_202702": 0, "audit_202703": 1,
        }  # fmt: skip
        await tables.close()

    asyncio.run(scenario())


async def partitions(database: str) -> dict[str, int]:
    """Rows of each partition of the audit table."""
    there = await execute(
        database, "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'audit'::regclass"
    )
    filled = await execute(database, "SELECT tableoid::regclass::text AS name, count(*) AS n FROM audit GROUP BY 1")
    return {row["name"]: 0 for row in there} | {row["name"]: row["n"] for row in filled}
