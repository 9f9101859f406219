"""The keyring over a real PostgreSQL: who is let in, what it costs, how soon a change counts, what a flood can do."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from policy.admission.hashing import Hashing
from policy.admission.keyring import TTL, Keyring
from policy.rules import keys
from policy.rules.decision import Deny, Reason
from policy.rules.limits import Limits
from policy.rules.tenants import Key, Tenant
from policy.stores.migrate import upgrade
from policy.stores.postgres import Postgres
from policy.stores.registry import Registries
from tests.postgresql import execute

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping

    from policy.admission.turns import Path
    from policy.rules.keys import ApiKey
    from tests.postgresql import PostgreSQL

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HERE = "192.0.2.1"
DRAFT = Key(id=0, prefix="", hash="", tenant=Tenant(id=0, name="acme"))


class CountedHashing(Hashing):
    """Notes in which order verifications were asked for and answered."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.answered: list[bool] = []

    async def verify(self, hash: str, secret: bytes, lane: str, path: Path) -> bool:
        self.asked += 1
        matches = await super().verify(hash, secret, lane, path)
        self.answered.append(matches)
        return matches


class CountedPostgres(Postgres):
    """Notes what was looked up; `gate` holds answers back."""

    loads = 0
    gate: asyncio.Event | None = None

    async def load(self, prefixes: Collection[str]) -> Mapping[str, Key]:
        self.loads += len(prefixes)
        found = await super().load(prefixes)
        if self.gate is not None:
            await self.gate.wait()
        return found


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Ring:
    """A running keyring and what it stands on."""

    keyring: Keyring
    hashing: CountedHashing
    postgres: CountedPostgres
    clock: Clock = field(default_factory=Clock)

    async def ask(self, key: ApiKey | str | None, now: datetime = NOW, address: str = HERE) -> Key | Deny:
        presented = key.reveal() if isinstance(key, keys.ApiKey) else key
        return await self.keyring.authenticate(presented, address, now)

    async def refused(self, key: ApiKey | str | None, now: datetime = NOW) -> Reason:
        outcome = await self.ask(key, now)
        assert isinstance(outcome, Deny)
        return outcome.reason

    async def admitted(self, key: ApiKey, now: datetime = NOW) -> Key:
        outcome = await self.ask(key, now)
        assert isinstance(outcome, Key), outcome
        return outcome

    @property
    def work(self) -> tuple[int, int]:
        """Look-ups and verifications so far."""
        return self.postgres.loads, self.hashing.asked


@asynccontextmanager
async def running(url: str, *, ttl: float = TTL, real_time: bool = False) -> AsyncIterator[Ring]:
    clock = Clock()
    async with CountedPostgres.open(url) as postgres:
        assert isinstance(postgres, CountedPostgres)
        with CountedHashing() as hashing:
            keyring = Keyring(postgres, hashing, ttl=ttl, clock=time.monotonic if real_time else clock)
            async with asyncio.TaskGroup() as tasks:
                run = tasks.create_task(keyring.run())
                await keyring.wait_up()
                yield Ring(keyring, hashing, postgres, clock)
                run.cancel()


_minted: list[tuple[ApiKey, str]] = []  # and hashed, which takes long: the same few serve in every database


async def new_key(url: str, draft: Key = DRAFT) -> ApiKey:
    """Another key of tenant acme."""
    async with Postgres.open(url) as postgres, Registries(postgres).open() as registry:
        before = len(await registry.keys())
        if before == len(_minted):
            key = keys.mint(os.urandom)
            with Hashing() as hashing:
                _minted.append((key, await hashing.hash(key.reveal().encode())))
        key, hash = _minted[before]
        if not before:
            await registry.add_tenant(Tenant(id=0, name="acme", models=frozenset({"llama3.1:8b"})))
        tenant = await registry.tenant("acme")
        assert tenant is not None
        assert await registry.add_key(replace(draft, prefix=key.prefix, hash=hash, tenant=tenant))
        return key


def wrong(key: ApiKey) -> ApiKey:
    """A well-formed key with the same prefix and another secret."""
    other = keys.parse(forged(key.prefix))
    assert other is not None
    return other


def forged(prefix: str) -> str:
    body = prefix + keys.mint(os.urandom).reveal()[12:-6]
    return body + keys.checksum(body)


def unknown() -> ApiKey:
    return keys.mint(os.urandom)


async def soon(true: Callable[[], bool], seconds: float = 10.0) -> float:
    """Wait for what happens in the background; how long that took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.005)
    return time.monotonic() - began


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
                    assert time.monotonic() - began < 3  # a second is promised; the machine may be busy
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
                assert time.monotonic() - began < 0.3 + 1.5
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
                await soon(lambda renewed=renewed: len(ring.hashing.answered) == renewed + 1)  # type: ignore[misc]
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


@pytest.mark.parametrize("address", [HERE, "198.51.100.{}"])
def test_a_flood_of_made_up_keys_does_not_starve_a_good_one(database: str, address: str) -> None:
    async def scenario() -> None:
        key = await new_key(database)
        async with running(database) as ring:
            began = time.monotonic()
            await ring.ask(unknown())
            alone = time.monotonic() - began
            flood = [asyncio.ensure_future(ring.ask(unknown(), address=address.format(n % 250))) for n in range(500)]
            await soon(lambda: len(ring.hashing.answered) > 2)  # under way and crowded
            before = len(ring.hashing.answered)
            began = time.monotonic()
            await ring.admitted(key)
            waited = time.monotonic() - began
            # Two were under way, two may have been about to start, one more runs beside it.
            assert len(ring.hashing.answered) - before <= 7
            assert waited < max(1.5, 8 * alone)
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
            await soon(lambda: not ring.keyring.up, 1)
            began = time.monotonic()
            assert await ring.refused(key) is Reason.DATABASE_DOWN
            assert await ring.refused(unknown()) is Reason.DATABASE_DOWN
            assert await ring.refused("nz_typo") is Reason.KEY_MALFORMED
            assert time.monotonic() - began < 1
            await asyncio.to_thread(own_postgresql.start)
            await soon(lambda: ring.keyring.up, 2)
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
            await soon(lambda: not ring.keyring.up, 3)
            assert await ring.refused(key) is Reason.DATABASE_DOWN
            own_postgresql.resume()
            await soon(lambda: ring.keyring.up, 5)
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
