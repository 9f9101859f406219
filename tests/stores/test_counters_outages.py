"""Servers under the counters that are killed, late or forgetful, and a cluster that could not be asked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from policy.rules.faults import StoreDown
from policy.stores.redis import KEYS, RedisStore, open_store
from tests.stores.cluster import running_valkey
from tests.stores.counting import Open, admit, flush, grant, key, plan, used

if TYPE_CHECKING:
    from pathlib import Path

    from tests.stores.cluster import Cluster


def test_a_server_that_forgot_its_scripts_is_told_them_again(store: Open) -> None:
    async def scenario() -> None:
        async with store() as counters:
            await admit(counters, plan(1, key()))
            await counters._link.run(lambda client: client.script_flush())
            assert (await admit(counters, plan(2, key()))).scopes[0].under_way == 1

    asyncio.run(scenario())


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    """With its append-only file it knows everything that it had answered; without, it lost everything."""

    async def scenario() -> None:
        for keeps in (True, False):
            with running_valkey(appendonly="yes" if keeps else "no", appendfsync="no") as server:
                counters = await open_store(server.url, epoch="test")
                given = []
                for number in range(50):
                    asked = plan(number, key())
                    given.append(grant(asked, await admit(counters, asked)))
                await asyncio.gather(*(counters.settle(one, used(1, 1)) for one in given[:25]))
                server.kill()
                with pytest.raises(StoreDown):
                    await counters.admit(plan("down", key()))
                await asyncio.to_thread(server.start)
                assert await counters.settle(given[0], used(1, 1)) == ("done" if keeps else "late")
                assert await counters.settle(given[30], used(1, 1)) == ("settled" if keeps else "late")
                tally = await admit(counters, plan("up", key()))
                assert tally.scopes[0].total == (26 * 2 if keeps else 2 * 2)
                assert tally.scopes[0].under_way == (24 if keeps else 0)
                await counters.close()

    asyncio.run(scenario())


def test_a_store_that_is_not_there_yet_is_found_later(tmp_path: Path) -> None:
    async def scenario() -> None:
        with running_valkey() as server:
            server.kill()
            counters = await open_store(server.url, epoch="test")
            with pytest.raises(StoreDown):
                await counters.ping()
            await asyncio.to_thread(server.start)
            assert (await admit(counters, plan(1, key()))).refused is None
            await counters.close()

    asyncio.run(scenario())


def test_a_cluster_that_could_not_be_asked_is_known_by_its_first_answer(
    valkey_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        import redis.asyncio

        async def unanswered(*_: object, **__: object) -> dict[str, object]:
            raise redis.ConnectionError("not there yet")

        with monkeypatch.context() as patched:
            patched.setattr(redis.asyncio.Redis, "info", unanswered)
            counters = await open_store(valkey_cluster.url, epoch="test", seconds=30)
        elsewhere = [number for number in range(64) if await _elsewhere(counters, number)]
        with pytest.raises(StoreDown, match="cluster"):
            await counters.admit(plan(1, key(of=elsewhere[0])))
        for number in range(64):
            assert (await admit(counters, plan(number, key(of=number)))).refused is None
        assert sum(await counters.backlog()) >= 64
        await flush(counters)
        await counters.close()

    asyncio.run(scenario())


async def _elsewhere(counters: RedisStore, shard: int) -> bool:
    """Whether a shard is on another node than the first."""
    slot = int(await counters.ask("CLUSTER", "KEYSLOT", KEYS[shard].about))
    return slot > 16384 // 3
