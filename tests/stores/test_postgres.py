"""Keys and tenants in a real PostgreSQL: what is read, what is heard of changes, what an absent server looks like."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest

from policy.rules.bounds import Bounds
from policy.rules.faults import DatabaseDown
from policy.rules.limits import Limits
from policy.rules.tenants import Key, Tenant
from policy.stores.migrate import head, upgrade
from policy.stores.postgres import Postgres
from policy.stores.registry import Registries
from tests.postgresql import execute

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from policy.stores.postgres import Watch
    from tests.postgresql import PostgreSQL

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
BOUNDS = Bounds(tools=7, template_logic=True, operator_options=frozenset({"num_ctx"}), keep_alive_seconds=1.5)
ACME = Tenant(
    id=0,
    name="acme",
    models=frozenset({"llama3.1:8b", "mistral:7b"}),
    max_tokens=512,
    limits=Limits(rpm=60),
    bounds=BOUNDS,
)
KEY = Key(
    id=0,
    prefix="nz_abcdefghi",
    hash="$argon2id$made-up",
    tenant=ACME,
    owner="ada",
    label="laptop",
    created_at=NOW,
    expires_at=NOW + timedelta(days=30),
    models=frozenset({"mistral:7b"}),
    max_tokens=100,
    limits=Limits(rpm=1, tpm=2, concurrency=3, budget_day=4, budget_month=5, budget_total=10**15),
)


async def stored(postgres: Postgres, key: Key = KEY) -> Key:
    """The key with its tenant, as they have been written."""
    async with Registries(postgres).open() as registry:
        tenant_id = await registry.add_tenant(key.tenant)
        assert tenant_id is not None
        tenant = replace(key.tenant, id=tenant_id)
        key_id = await registry.add_key(replace(key, tenant=tenant))
        assert key_id is not None
        return replace(key, id=key_id, tenant=tenant)


@asynccontextmanager
async def watching(url: str) -> AsyncIterator[tuple[Postgres, Watch]]:
    async with Postgres.open(url) as postgres, postgres.watch() as watch:
        yield postgres, watch


async def heard(watch: Watch, marker: str = "end") -> list[str]:
    """What was heard until now: the connection is in order, so a notice of our own marks the end."""
    await watch._connection.execute("SELECT pg_notify('paddock_changed', $1)", marker)
    notices = []
    while (notice := await watch.notice()) != marker:
        notices.append(notice)
    return sorted(notices)


def test_a_key_is_read_as_it_was_written(database: str) -> None:
    async def scenario() -> None:
        async with Postgres.open(database) as postgres:
            key = await stored(postgres)
            assert await postgres.load(["nz_abcdefghi", "nz_absentabs"]) == {"nz_abcdefghi": key}
            async with Registries(postgres).open() as registry:
                assert await registry.tenants() == [key.tenant]
                assert await registry.tenant("ACME") == key.tenant
                assert await registry.keys() == await registry.keys(key.tenant.id) == [key]
                assert await registry.keys(key.tenant.id + 1) == []
                assert await registry.key("nz_abcdefghi") == key
                assert await registry.key("nz_absentabs") is None

    asyncio.run(scenario())


@pytest.mark.parametrize("models", [None, frozenset[str](), frozenset({"a:b", "c:d"})])
def test_a_list_of_no_models_is_not_the_absence_of_a_list(database: str, models: frozenset[str] | None) -> None:
    async def scenario() -> None:
        async with Postgres.open(database) as postgres:
            await stored(postgres, replace(KEY, models=models))
            assert (await postgres.load([KEY.prefix]))[KEY.prefix].models == models

    asyncio.run(scenario())


def test_what_is_saved_replaces_all_of_it(database: str) -> None:
    async def scenario() -> None:
        async with Postgres.open(database) as postgres:
            key = await stored(postgres)
            tenant = replace(
                key.tenant,
                disabled=True,
                allow_all_models=True,
                models=frozenset({"phi4:latest", "mistral:7b"}),
                max_tokens=None,
                limits=Limits(tpm=9),
                bounds=Bounds(),
            )
            changed = replace(
                key,
                tenant=tenant,
                owner="",
                label="x",
                expires_at=None,
                disabled=True,
                revoked_at=NOW,
                models=None,
                max_tokens=None,
                limits=Limits(),
            )
            async with Registries(postgres).open() as registry:
                await registry.save_tenant(tenant)
                await registry.save_key(changed, successor_id=key.id)
            assert await postgres.load([key.prefix]) == {key.prefix: changed}

    asyncio.run(scenario())


def test_a_transaction_that_fails_leaves_nothing(database: str) -> None:
    async def scenario() -> None:
        async with Postgres.open(database) as postgres:
            with pytest.raises(ZeroDivisionError):
                async with Registries(postgres).open() as registry:
                    await registry.add_tenant(ACME)
                    raise ZeroDivisionError
            async with Registries(postgres).open() as registry:
                assert await registry.tenants() == []

    asyncio.run(scenario())


def test_names_and_prefixes_are_taken_once(database: str) -> None:
    async def scenario() -> None:
        async with Postgres.open(database) as postgres:
            key = await stored(postgres)
            async with Registries(postgres).open() as registry:
                assert await registry.add_tenant(replace(ACME, name="Acme")) is None
                assert await registry.add_key(key) is None

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO tenant (name) VALUES ('')",
        "INSERT INTO tenant (name) VALUES ('a b')",
        "INSERT INTO tenant (name) VALUES ('nz_abcdefghi')",
        "INSERT INTO tenant (name, rpm) VALUES ('a', -1)",
        "INSERT INTO tenant (name, budget_total) VALUES ('a', 1000000000000001)",
        "INSERT INTO tenant (name, max_tokens) VALUES ('a', 0)",
        """INSERT INTO tenant (name, bounds) VALUES ('a', '[]')""",
        """INSERT INTO tenant (name, bounds) VALUES ('a', '{"tools": -1}')""",
        """INSERT INTO tenant (name, bounds) VALUES ('a', '{"tools": "7"}')""",
        """INSERT INTO tenant (name, bounds) VALUES ('a', '{"tools": null}')""",
        """INSERT INTO tenant (name, bounds) VALUES ('a', '{"depth": 257}')""",
        """INSERT INTO tenant (name, bounds) VALUES ('a', '{"template_logic": 1}')""",
        """INSERT INTO tenant (name, bounds) VALUES ('a', '{"operator_options": "num_ctx"}')""",
        "UPDATE api_key SET prefix = 'nz_short'",
        "UPDATE api_key SET hash = 'plain'",
        "DELETE FROM tenant",
    ],
)
def test_the_schema_refuses(database: str, statement: str) -> None:
    async def scenario() -> None:
        async with Postgres.open(database) as postgres:
            await stored(postgres)
            with pytest.raises(asyncpg.IntegrityConstraintViolationError):
                async with postgres.connection() as connection:
                    await connection.execute(statement)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("statement", "notices"),
    [
        ("UPDATE tenant SET rpm = 5", ["tenant:1"]),
        ("""UPDATE tenant SET bounds = '{"tools": 1}'""", ["tenant:1"]),
        ("UPDATE tenant SET id = DEFAULT WHERE false", []),
        ("INSERT INTO tenant (name) VALUES ('other')", ["tenant:2"]),
        ("INSERT INTO tenant_model VALUES (1, 'phi4:latest')", ["tenant:1"]),
        ("DELETE FROM tenant_model", ["tenant:1"]),
        ("UPDATE api_key SET disabled = true", ["key:nz_abcdefghi"]),
        ("UPDATE api_key SET revoked_at = now(), last_used_at = now()", ["key:nz_abcdefghi"]),
        ("UPDATE api_key SET prefix = 'nz_ihgfedcba'", ["key:nz_abcdefghi", "key:nz_ihgfedcba"]),
        ("UPDATE api_key SET last_used_at = now()", []),
        ("INSERT INTO api_key_model VALUES (1, 'phi4:latest')", ["key:nz_abcdefghi"]),
        ("DELETE FROM api_key_model", ["key:nz_abcdefghi"]),
        ("DELETE FROM api_key", ["key:nz_abcdefghi"]),
        ("TRUNCATE api_key_model", ["all"]),
        ("TRUNCATE tenant CASCADE", ["all", "sessions"]),
    ],
)
def test_any_change_is_heard_whoever_makes_it(database: str, statement: str, notices: list[str]) -> None:
    async def scenario() -> None:
        async with watching(database) as (postgres, watch):
            await stored(postgres)
            assert await heard(watch) == ["key:nz_abcdefghi", "tenant:1"]
            await execute(database, statement)
            assert await heard(watch) == notices

    asyncio.run(scenario())


def test_stamps_go_forward_only_and_stay_silent(database: str) -> None:
    async def scenario() -> None:
        async with watching(database) as (postgres, watch):
            key = await stored(postgres)
            await heard(watch)
            for at, then in ((NOW, NOW), (NOW - timedelta(1), NOW), (NOW + timedelta(1), NOW + timedelta(1))):
                await postgres.stamp({key.id: at, key.id + 1: at})
                assert (await postgres.load([key.prefix]))[key.prefix].last_used_at == then
            assert await heard(watch) == []

    asyncio.run(scenario())


def test_a_stamp_does_not_wait_for_an_operator_who_holds_the_row(database: str) -> None:
    async def scenario() -> None:
        async with Postgres.open(database) as postgres:
            key = await stored(postgres)
            async with Registries(postgres).open() as registry:
                assert await registry.key(key.prefix)
                await asyncio.wait_for(postgres.stamp({key.id: NOW}), 1)
            assert (await postgres.load([key.prefix]))[key.prefix].last_used_at is None

    asyncio.run(scenario())


def test_two_operators_at_once_see_each_other(database: str) -> None:
    async def add_model(registries: Registries, model: str) -> None:
        async with registries.open() as registry:
            tenant = await registry.tenant("acme")
            assert tenant is not None
            await asyncio.sleep(0.01)  # the other comes in between, if it can
            await registry.save_tenant(replace(tenant, models=tenant.models | {model}))

    async def scenario() -> None:
        async with Postgres.open(database) as postgres:
            await stored(postgres)
            await asyncio.gather(*(add_model(Registries(postgres), f"m{n}:latest") for n in range(4)))
            async with Registries(postgres).open() as registry:
                [tenant] = await registry.tenants()
            assert tenant.models == ACME.models | {"m0:latest", "m1:latest", "m2:latest", "m3:latest"}

    asyncio.run(scenario())


def test_many_replicas_migrate_one_database_once(postgresql: PostgreSQL) -> None:
    url = postgresql.new_database()
    program = "import asyncio, sys\nfrom policy.stores.migrate import upgrade\nasyncio.run(upgrade(sys.argv[1]))"
    replicas = [subprocess.Popen([sys.executable, "-W", "error", "-c", program, url]) for _ in range(4)]
    assert [replica.wait() for replica in replicas] == [0, 0, 0, 0]
    assert [row[0] for row in asyncio.run(execute(url, "SELECT version_num FROM alembic_version"))] == [head()]


def test_a_database_at_head_is_left_alone_without_alembic(database: str) -> None:
    program = (
        "import asyncio, sys\nfrom policy.stores.migrate import upgrade\n"
        "assert asyncio.run(upgrade(sys.argv[1])) is False\n"
        "assert not {'alembic', 'sqlalchemy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program, database], check=True)


def test_a_replica_older_than_the_schema_goes_on(database: str) -> None:
    asyncio.run(execute(database, "UPDATE alembic_version SET version_num = '9999'"))
    assert asyncio.run(upgrade(database)) is False


def test_an_empty_database_is_brought_to_head_once(postgresql: PostgreSQL) -> None:
    url = postgresql.new_database()
    assert asyncio.run(upgrade(url)) is True
    assert asyncio.run(upgrade(url)) is False


def test_an_absent_server_is_one_error_everywhere(tmp_path: object) -> None:
    url = f"postgresql:///paddock?host={tmp_path}"

    async def scenario() -> None:
        async with Postgres.open(url) as postgres:  # a service may start before its database
            with pytest.raises(DatabaseDown):
                await postgres.load(["nz_abcdefghi"])
            with pytest.raises(DatabaseDown):
                async with postgres.watch():
                    raise AssertionError("there is nothing to watch")
        with pytest.raises(DatabaseDown):
            await upgrade(url)

    asyncio.run(scenario())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_lost_server_is_noticed_at_once_and_found_again(own_postgresql: PostgreSQL, how: signal.Signals) -> None:
    url = own_postgresql.new_database()
    asyncio.run(upgrade(url))

    async def scenario() -> None:
        async with Postgres.open(url) as postgres:
            key = await stored(postgres)
            async with postgres.watch() as watch:
                own_postgresql.stop(how)
                began = time.monotonic()
                with pytest.raises(DatabaseDown):
                    await watch.notice()
                assert time.monotonic() - began < 10  # at once; the machine may be busy
            with pytest.raises(DatabaseDown):
                await postgres.load([key.prefix])
            await asyncio.to_thread(own_postgresql.start)
            async with postgres.watch():
                assert key.prefix in await postgres.load([key.prefix])

    asyncio.run(scenario())


def test_a_hung_server_is_noticed_within_two_seconds(own_postgresql: PostgreSQL) -> None:
    async def scenario() -> None:
        async with Postgres.open(own_postgresql.url()) as postgres, postgres.watch() as watch:
            await asyncio.to_thread(own_postgresql.hang)
            began = time.monotonic()
            with pytest.raises(DatabaseDown):
                await watch.notice()
            assert time.monotonic() - began < 10  # two; the machine may be busy

    asyncio.run(scenario())


def test_a_quiet_connection_stays_watched(database: str) -> None:
    async def scenario() -> None:
        async with watching(database) as (_, watch):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(watch.notice(), 2.5)  # longer than a pulse

    asyncio.run(scenario())
