"""The keyring in bad times: floods of keys that are none, and a PostgreSQL that dies, hangs or is not ours yet."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from policy.admission.hashing import Hashing
from policy.admission.keyring import TTL, Keyring
from policy.rules.decision import Deny, Reason
from policy.rules.tenants import Key
from policy.stores.migrate import upgrade
from policy.stores.postgres import Postgres
from tests.policy.ring import HERE, NOW, new_key, running, soon, unknown, wrong

if TYPE_CHECKING:
    from tests.postgresql import PostgreSQL


@pytest.mark.parametrize("address", [HERE, "198.51.100.{}"])
def test_a_flood_of_made_up_keys_does_not_starve_a_good_one(database: str, address: str) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        async with running(database) as ring:
            flood = [asyncio.ensure_future(ring.ask(unknown(), address=address.format(n % 250))) for n in range(500)]
            await soon(lambda: len(ring.hashing.answered) > 2)  # under way and crowded
            before = len(ring.hashing.answered)
            await ring.admitted(key)
            # Two were under way, two may have been about to start, one more runs beside it.
            assert len(ring.hashing.answered) - before <= 7
            for task in flood:
                task.cancel()
            outcomes = await asyncio.gather(*flood, return_exceptions=True)
            reasons = Counter(outcome.reason for outcome in outcomes if isinstance(outcome, Deny))
            assert reasons[Reason.KEY_OVERLOADED] > 400
            assert not any(isinstance(outcome, Key) for outcome in outcomes)

    asyncio.run(scenario())


def test_a_flood_under_a_good_keys_own_prefix_does_not_keep_out_who_was_in_before(database: str) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        async with running(database) as ring:
            await ring.admitted(key)
            ring.clock.now += TTL  # forgotten, but for having been good
            flood = [asyncio.ensure_future(ring.ask(wrong(key))) for _ in range(100)]
            await soon(lambda: len(ring.hashing.answered) > 3)
            before = len(ring.hashing.answered)
            await ring.admitted(key)
            assert len(ring.hashing.answered) - before <= 7
            for task in flood:
                task.cancel()
            await asyncio.gather(*flood, return_exceptions=True)

    asyncio.run(scenario())


def test_without_the_database_everything_is_refused_at_once_and_comes_back_by_itself(
    own_postgresql: PostgreSQL,
) -> None:
    url = own_postgresql.new_database()
    asyncio.run(upgrade(url))

    async def scenario() -> None:
        key = await new_key(url)
        async with running(url) as ring:
            await ring.admitted(key)
            own_postgresql.stop()
            await soon(lambda: not ring.keyring.up)
            began = time.monotonic()
            assert await ring.refused(key) is Reason.DATABASE_DOWN
            assert await ring.refused(unknown()) is Reason.DATABASE_DOWN
            assert await ring.refused("nz_typo") is Reason.KEY_MALFORMED
            assert time.monotonic() - began < 10  # nobody waits for it; the machine may be busy
            await asyncio.to_thread(own_postgresql.start)
            await soon(lambda: ring.keyring.up)
            await ring.admitted(key)
            assert ring.hashing.asked == 1, "who comes back after an outage does not queue for argon2"

    asyncio.run(scenario())


def test_a_database_that_hangs_is_a_database_that_is_down(own_postgresql: PostgreSQL) -> None:
    url = own_postgresql.new_database()
    asyncio.run(upgrade(url))

    async def scenario() -> None:
        key = await new_key(url)
        async with running(url) as ring:
            await ring.admitted(key)
            await asyncio.to_thread(own_postgresql.hang)
            await soon(lambda: not ring.keyring.up)
            assert await ring.refused(key) is Reason.DATABASE_DOWN
            own_postgresql.resume()
            await soon(lambda: ring.keyring.up)
            await ring.admitted(key)

    asyncio.run(scenario())


def test_a_keyring_that_never_reached_its_database_lets_nobody_in(tmp_path: object) -> None:
    async def scenario() -> None:
        async with Postgres.open(f"postgresql:///x?host={tmp_path}") as postgres, asyncio.TaskGroup() as tasks:
            with Hashing() as hashing:
                keyring = Keyring(postgres, hashing)
                run = tasks.create_task(keyring.run())
                await asyncio.sleep(0.05)
                outcome = await keyring.authenticate(unknown().reveal(), HERE, NOW)
                assert isinstance(outcome, Deny)
                assert outcome.reason is Reason.DATABASE_DOWN
                run.cancel()

    asyncio.run(scenario())


def test_a_database_without_our_tables_is_no_database_until_it_has_them(postgresql: PostgreSQL) -> None:
    url = postgresql.new_database()

    async def scenario() -> None:
        async with running(url) as ring:
            key = unknown()
            assert await ring.refused(key) is Reason.DATABASE_DOWN
            await upgrade(url)
            assert await ring.refused(key) is Reason.KEY_UNKNOWN

    asyncio.run(scenario())


def test_whoever_waits_when_the_keyring_stops_is_refused(database: str) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        async with running(database) as ring:
            waiting = asyncio.ensure_future(ring.ask(key))
            await soon(lambda: ring.hashing.asked > 0)
        outcome = await waiting
        assert isinstance(outcome, Deny)
        assert outcome.reason is Reason.DATABASE_DOWN

    asyncio.run(scenario())
