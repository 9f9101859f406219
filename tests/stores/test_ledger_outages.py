"""A ledger whose leader is lost, whose database dies, and which meets a fault that nobody foresaw."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest

from policy.rules.faults import DatabaseDown
from policy.stores.ledger_postgres import LedgerTables
from policy.stores.migrate import upgrade
from tests.postgresql import execute
from tests.stores.books import books, served, until

if TYPE_CHECKING:
    from tests.postgresql import PostgreSQL
    from tests.stores.cluster import Valkey


def test_of_two_writers_one_leads_and_the_other_takes_over(database: str, valkey: Valkey) -> None:
    async def scenario() -> None:
        async with books(database, valkey) as (_, _, first):
            second = LedgerTables(database)
            assert await first.lead() and not await second.lead()
            [row] = await execute(
                database,
                "SELECT pg_terminate_backend(pid) AS gone FROM pg_locks WHERE locktype = 'advisory' AND granted"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            )
            assert row["gone"]
            await until(second.lead)  # the server takes a moment to end a session
            with pytest.raises(DatabaseDown):
                async with first.writing():
                    pass
            assert not await first.lead()
            await second.close()

    asyncio.run(scenario())


def test_a_database_that_dies_is_waited_for(own_postgresql: PostgreSQL, valkey: Valkey) -> None:
    database = own_postgresql.new_database()

    async def scenario() -> None:
        await upgrade(database)
        async with books(database, valkey) as (ledger, store, _), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(ledger.run())
            await served(store, 1)
            await until(lambda: _settled(database, 1))
            own_postgresql.stop()
            await served(store, 2)

            async def waits() -> bool:
                return ledger.waits

            await until(waits)
            assert not running.done()
            await asyncio.to_thread(own_postgresql.start)
            await until(lambda: _settled(database, 2))
            running.cancel()

    asyncio.run(scenario())


async def _settled(database: str, count: int) -> bool:
    [row] = await execute(database, "SELECT count(*) AS n FROM audit WHERE settled_at IS NOT NULL")
    return bool(row["n"] == count)


def test_a_fault_that_nobody_foresaw_does_not_end_the_ledger(
    database: str, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with books(database, valkey) as (ledger, store, _), asyncio.TaskGroup() as tasks:
            monkeypatch.setattr("policy.admission.ledger.FAULT_SECONDS", 0.01)
            faults = iter([RuntimeError("out of the blue"), asyncpg.DiskFullError("no space left on device")])
            backlog = store.backlog

            async def faulty() -> list[int]:
                for fault in faults:
                    raise fault
                return await backlog()

            store.backlog = faulty  # type: ignore[method-assign]  # what is out of anybody's control
            await served(store, 1)
            running = tasks.create_task(ledger.run())
            await until(lambda: _settled(database, 1))
            running.cancel()

    asyncio.run(scenario())
