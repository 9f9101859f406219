"""The keyring over a real PostgreSQL: who is let in, and what that costs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from policy.rules.decision import Deny, Reason
from policy.rules.limits import Limits
from policy.rules.tenants import Key
from tests.policy.ring import DRAFT, NOW, Ring, new_key, running, soon, unknown, wrong
from tests.postgresql import execute

if TYPE_CHECKING:
    from policy.rules.keys import ApiKey


def test_a_good_key_is_known_with_all_that_belongs_to_it(database: str) -> None:
    async def scenario() -> None:
        draft = replace(DRAFT, owner="ada", limits=Limits(rpm=5), models=frozenset({"llama3.1:8b"}))
        key = await new_key(database, draft)
        async with running(database) as ring:
            found = await ring.admitted(key)
            assert (found.prefix, found.owner, found.limits.rpm) == (key.prefix, "ada", 5)
            assert found.tenant.name == "acme"
            assert found.may_use("llama3.1:8b")
            assert ring.work == (1, 1)
            assert await ring.admitted(key) == found
            assert ring.work == (1, 1), "the second time is free"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("presented", "reason"),
    [
        (None, Reason.KEY_MISSING),
        ("", Reason.KEY_MALFORMED),
        ("nz_short", Reason.KEY_MALFORMED),
        ("nz_" + "0" * 41, Reason.KEY_MALFORMED),
        ("nz_" + "é" * 41, Reason.KEY_MALFORMED),
    ],
    ids=["nothing", "empty", "short", "checksum", "letters"],
)
def test_what_is_no_key_costs_nothing(database: str, presented: str | None, reason: Reason) -> None:
    async def scenario() -> None:
        async with running(database) as ring:
            assert await ring.refused(presented) is reason
            assert ring.work == (0, 0)

    asyncio.run(scenario())


def test_unknown_and_wrong_cost_the_same_and_only_once(database: str) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        nobodys, stale = unknown(), wrong(key)
        async with running(database) as ring:
            assert await ring.refused(nobodys) is Reason.KEY_UNKNOWN
            assert ring.work == (1, 1)
            assert await ring.refused(stale) is Reason.KEY_WRONG
            assert ring.work == (2, 2)
            for _ in range(3):
                assert await ring.refused(nobodys) is Reason.KEY_UNKNOWN
                assert await ring.refused(stale) is Reason.KEY_WRONG
            assert ring.work == (2, 2)
            answers = [await ring.ask(one) for one in (nobodys, stale)]
            assert len({answer.body("id") for answer in answers if isinstance(answer, Deny)}) == 1
            assert {answer.status for answer in answers if isinstance(answer, Deny)} == {401}

    asyncio.run(scenario())


def test_unknown_and_wrong_take_the_same_time(database: str) -> None:
    async def took(ring: Ring, key: ApiKey) -> float:
        began = time.process_time()  # of all threads: what other processes do to the clock does not count
        await ring.ask(key)
        return time.process_time() - began

    async def scenario() -> None:
        key = await new_key(database)
        async with running(database) as ring:
            await took(ring, wrong(key))
            pairs = [(await took(ring, unknown()), await took(ring, wrong(key))) for _ in range(7)]
        fastest = [min(times) for times in zip(*pairs, strict=True)]
        assert max(fastest) < 1.5 * min(fastest)

    asyncio.run(scenario())


def test_however_many_wait_it_is_verified_once(database: str) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        async with running(database) as ring:
            waiting = [asyncio.ensure_future(ring.ask(key)) for _ in range(20)]
            await soon(lambda: ring.hashing.asked > 0)
            for leaving in waiting[:10]:  # the first among them, who began it all
                leaving.cancel()
            assert all(isinstance(outcome, Key) for outcome in await asyncio.gather(*waiting[10:]))
            assert ring.work == (1, 1)

    asyncio.run(scenario())


def test_when_all_who_waited_have_left_the_next_finds_the_work_done(database: str) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        async with running(database) as ring:
            leaving = asyncio.ensure_future(ring.ask(key))
            await soon(lambda: ring.hashing.asked > 0)
            leaving.cancel()
            await soon(lambda: bool(ring.hashing.answered))
            await ring.admitted(key)
            assert ring.hashing.asked == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE api_key SET disabled = true", Reason.KEY_DISABLED),
        ("UPDATE tenant SET disabled = true", Reason.KEY_DISABLED),
        ("UPDATE api_key SET expires_at = '2029-12-31 23:59:59+00'", Reason.KEY_EXPIRED),
        ("UPDATE api_key SET revoked_at = '2029-12-31 23:59:59+00'", Reason.KEY_REVOKED),
    ],
)
def test_a_key_that_opens_nothing_any_more(database: str, statement: str, reason: Reason) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        await execute(database, statement)
        async with running(database) as ring:
            outcome = await ring.ask(key)
            assert isinstance(outcome, Deny)
            assert (outcome.reason, outcome.tenant, outcome.key_prefix) == (reason, "acme", key.prefix)
            # Whoever does not have the secret does not learn of it.
            assert await ring.refused(wrong(key)) is Reason.KEY_WRONG

    asyncio.run(scenario())


def test_expiry_and_grace_end_on_time_without_any_notice(database: str) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        await execute(database, "UPDATE api_key SET revoked_at = '2030-01-02+00', expires_at = '2030-01-03+00'")
        async with running(database) as ring:
            last = NOW + timedelta(days=1) - timedelta(microseconds=1)
            await ring.admitted(key, last)
            assert await ring.refused(key, last + timedelta(microseconds=1)) is Reason.KEY_REVOKED
            assert await ring.refused(key, NOW + timedelta(days=2)) is Reason.KEY_EXPIRED

    asyncio.run(scenario())


def test_last_use_is_written_down_in_the_end(database: str) -> None:
    async def scenario() -> None:
        key, unused = await new_key(database), await new_key(database)
        async with running(database) as ring:
            await ring.admitted(key)
            await ring.refused(wrong(unused))
        rows = await execute(database, "SELECT prefix, last_used_at FROM api_key")
        assert {row["prefix"]: row["last_used_at"] for row in rows} == {key.prefix: NOW, unused.prefix: None}

    asyncio.run(scenario())


def test_no_secret_is_kept_or_shown(database: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        secret = key.reveal()[12:]
        async with running(database) as ring:
            await ring.admitted(key)
            await ring.refused(wrong(key))
            for store in (ring.keyring._good, ring.keyring._wrong, ring.keyring._records):
                assert secret not in repr(list(store._items.items()))
            assert secret not in caplog.text
            assert "argon2id" not in repr(await ring.admitted(key))

    asyncio.run(scenario())
