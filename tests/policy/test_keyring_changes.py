"""What the keyring remembers, over a real PostgreSQL: how soon a change counts, and how long anything is believed."""

from __future__ import annotations

import asyncio
import time

import pytest

from policy.rules.decision import Deny, Reason
from policy.rules.tenants import Key
from tests.policy.ring import new_key, running, soon
from tests.postgresql import execute


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE api_key SET revoked_at = '2020-01-01'",
        "UPDATE api_key SET disabled = true",
        "UPDATE tenant SET disabled = true",
        "DELETE FROM api_key",
        "TRUNCATE api_key CASCADE",
    ],
)
def test_what_an_operator_takes_away_is_gone_everywhere_within_a_second(database: str, statement: str) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        async with running(database) as one, running(database) as two:
            for ring in (one, two):
                await ring.admitted(key)
            began = time.monotonic()
            await execute(database, statement)
            for ring in (one, two):
                while isinstance(await ring.ask(key), Key):
                    assert time.monotonic() - began < 10  # a second is promised; the machine may be busy
                    await asyncio.sleep(0.005)

    asyncio.run(scenario())


def test_changes_that_leave_the_secret_alone_do_not_cost_argon2_again(database: str) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        async with running(database) as ring:
            assert (await ring.admitted(key)).limits.rpm is None
            await execute(database, "UPDATE tenant SET rpm = 7")
            await execute(database, "UPDATE api_key SET rpm = 5, models_restricted = true")
            await soon(lambda: ring.keyring._records.get(key.prefix) is None)
            found = await ring.admitted(key)
            assert (found.tenant.limits.rpm, found.limits.rpm, found.models) == (7, 5, frozenset())
            assert ring.work == (2, 1)

    asyncio.run(scenario())


def test_a_key_that_was_refused_works_as_soon_as_it_exists(database: str) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        [row] = await execute(database, "DELETE FROM api_key RETURNING prefix, hash, tenant_id")
        async with running(database) as ring:
            assert await ring.refused(key) is Reason.KEY_UNKNOWN
            insert = "INSERT INTO api_key (prefix, hash, tenant_id, disabled) VALUES ($1, $2, $3, true)"
            await execute(database, insert, *row)
            await soon(lambda: ring.keyring._absent.get(key.prefix) is None)
            assert await ring.refused(key) is Reason.KEY_DISABLED
            await execute(database, "UPDATE api_key SET disabled = false")
            await soon(lambda: ring.keyring._records.get(key.prefix) is None)
            await ring.admitted(key)

    asyncio.run(scenario())


def test_a_new_hash_makes_the_old_secret_wrong(database: str) -> None:
    async def scenario() -> None:
        key, other = await new_key(database), await new_key(database)
        async with running(database) as ring:
            await ring.admitted(key)
            take_over = "UPDATE api_key SET hash = (SELECT hash FROM api_key WHERE prefix = $2) WHERE prefix = $1"
            await execute(database, take_over, key.prefix, other.prefix)
            await soon(lambda: ring.keyring._records.get(key.prefix) is None)
            assert await ring.refused(key) is Reason.KEY_WRONG

    asyncio.run(scenario())


def test_without_notices_a_change_counts_when_the_time_is_over(database: str) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        await execute(database, "ALTER TABLE api_key DISABLE TRIGGER ALL")
        async with running(database, ttl=0.3, real_time=True) as ring:
            await ring.admitted(key)
            await execute(database, "UPDATE api_key SET disabled = true")
            began = time.monotonic()
            while isinstance(await ring.ask(key), Key):  # in use all the time, and so renewed all the time
                assert time.monotonic() - began < 10  # 0.3 it is; the machine may be busy
                await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_nothing_is_believed_longer_than_the_time(database: str) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        async with running(database) as ring:
            await ring.admitted(key)
            ring.clock.now += 29.9
            # Late in its time it still counts, and is renewed in the background.
            await ring.admitted(key)
            assert ring.hashing.answered == [True]
            await soon(lambda: ring.work == (2, 2) and len(ring.hashing.answered) == 2)
            ring.clock.now += 19
            await ring.admitted(key)
            assert ring.work == (2, 2)
            ring.clock.now += 30.1
            await ring.admitted(key)
            assert ring.work == (3, 3), "out of use it was forgotten"

    asyncio.run(scenario())


def test_a_key_in_use_never_waits_for_argon2_again(database: str) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        async with running(database) as ring:
            await ring.admitted(key)
            for renewed in range(1, 4):
                for _ in range(5):  # every five seconds for as long as it is renewed
                    ring.clock.now += 5
                    answered = len(ring.hashing.answered)
                    await ring.admitted(key)
                    assert len(ring.hashing.answered) == answered, "this request waited"
                await soon(lambda due=renewed + 1: len(ring.hashing.answered) == due)  # type: ignore[misc]  # a lambda's default has no type
            assert ring.work == (4, 4)

    asyncio.run(scenario())


def test_what_was_read_before_a_change_is_not_remembered_after_it(database: str) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        async with running(database) as ring:
            ring.postgres.gate = asyncio.Event()
            early = asyncio.ensure_future(ring.ask(key))
            await soon(lambda: ring.postgres.loads > 0)
            generation = ring.keyring._generation
            await execute(database, "UPDATE api_key SET disabled = true")
            await soon(lambda: ring.keyring._generation > generation)
            ring.postgres.gate.set()
            # It waited for argon2 meanwhile, so even the early one sees the change.
            outcome = await early
            assert isinstance(outcome, Deny)
            assert outcome.reason is Reason.KEY_DISABLED
            assert await ring.refused(key) is Reason.KEY_DISABLED

    asyncio.run(scenario())
