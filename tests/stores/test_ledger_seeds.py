"""What the ledger tells a counter that begins: what was used so far, and up to which event."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import asyncpg

from policy.rules.events import read
from policy.rules.settlement import Known, Seed
from policy.stores.ledger_postgres import seeds
from tests.postgresql import execute
from tests.stores.books import books, carry, served

if TYPE_CHECKING:
    from tests.stores.cluster import Valkey


def test_seeds_say_what_was_used_and_up_to_which_event(database: str, valkey: Valkey) -> None:
    async def scenario() -> None:
        today = datetime(2027, 1, 15, tzinfo=UTC).date()
        async with books(database, valkey) as (ledger, store, _):
            connection = await asyncpg.connect(database)
            assert await seeds(connection, 7, 9, today) == Known(
                Seed(20833, 0, 202701, 0, 0), Seed(20833, 0, 202701, 0, 0)
            )
            store.clock = str(round(datetime(2027, 1, 15, 8, tzinfo=UTC).timestamp() * 1000))
            await served(store, 1)
            found = await store.events(7, 10)
            await carry(ledger)
            await execute(
                database,
                "INSERT INTO usage_daily SELECT day, tenant_id, key_id, model, 1, tokens, 0, 0, 0, 0, 0 FROM (VALUES"
                " (date '2027-01-01', 7, 9, 'a', 100), (date '2026-12-31', 7, 9, 'a', 1000),"
                " (date '2027-01-15', 7, 8, 'a', 7), (date '2027-01-15', 8, 9, 'a', 5)"
                ") AS v (day, tenant_id, key_id, model, tokens)",
            )
            assert await seeds(connection, 7, 9, today) == Known(
                Seed(20833, 22, 202701, 122, 1122), Seed(20833, 15, 202701, 115, 1115), found.epoch, found.last
            )
            await connection.close()

    asyncio.run(scenario())


def test_a_rotated_key_goes_on_with_what_those_before_it_used(database: str, valkey: Valkey) -> None:
    async def scenario() -> None:
        today = datetime(2027, 1, 15, tzinfo=UTC).date()
        async with books(database, valkey):
            connection = await asyncpg.connect(database)
            await connection.execute("INSERT INTO tenant (name) VALUES ('acme')")
            tenant = await connection.fetchval("SELECT id FROM tenant")
            ids: list[int] = []
            for number, of in enumerate((None, 0, 0, None)):
                ids.append(
                    await connection.fetchval(
                        "INSERT INTO api_key (prefix, hash, tenant_id, counts_as) VALUES ($1, $2, $3, $4) RETURNING id",
                        f"nz_rotated{number:02d}",
                        "$argon2id$",
                        tenant,
                        None if of is None else ids[of],
                    )
                )
                await connection.execute(
                    "INSERT INTO usage_daily SELECT $1, $2, $3, 'a', 1, $4, 0, 0, 0, 0, 0",
                    today, tenant, ids[-1], 10**number,
                )  # fmt: skip
            known = await seeds(connection, tenant, ids[0], today)
            assert (known.tenant.total, known.key.day_tokens, known.key.month_tokens, known.key.total) == (
                1111, 111, 111, 111,
            )  # fmt: skip
            assert (await seeds(connection, tenant, ids[3], today)).key.total == 1000
            await connection.close()

    asyncio.run(scenario())


def test_seeds_wait_for_events_that_are_being_written(database: str, valkey: Valkey) -> None:
    """They have been read from a store that may lose them at any moment: a sum without them would be too small."""

    async def scenario() -> None:
        today = datetime(2027, 1, 15, tzinfo=UTC).date()
        async with books(database, valkey) as (_, store, tables):
            await served(store, 1)
            connection = await asyncpg.connect(database)
            async with asyncio.TaskGroup() as tasks:
                async with tables.writing():
                    found = await store.events(7, 10)
                    await store.ask("FLUSHALL")
                    asking = tasks.create_task(seeds(connection, 7, 9, today))
                    await asyncio.wait([asking], timeout=0.1)
                    assert not asking.done()
                    assert (await tables.apply([read(fields) for _, fields in found.entries])).refused == []
                    await tables.advance([found])
            assert asking.result().tenant.total == 15
            await connection.close()

    asyncio.run(scenario())
