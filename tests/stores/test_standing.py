"""How things stand in all shards: what waits, what is open, whose lease is over. One call to one server."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import redis.asyncio as redis

from policy.stores.redis import LEASE_MS, STANDING, RedisStore
from policy.stores.redis_link import Link
from tests.stores.counting import NOW, admit, grant, key, plan, used

if TYPE_CHECKING:
    from tests.stores.cluster import Cluster
    from tests.stores.counting import Open

SHARDS = (3, 7, 60)


def test_what_stands_where(store: Open) -> None:
    async def scenario() -> None:
        async with store() as counters:
            assert await counters.standing() == (0, 0.0, 0)
            assert await counters.backlog() == [0] * 64
            counters.clock = str(NOW)
            begun = time.time()
            for number, shard in enumerate(SHARDS):
                for again in range(number + 1):
                    await admit(counters, plan(f"{shard}-{again}", key(number=shard, of=shard)))
            expected = [0] * 64
            for number, shard in enumerate(SHARDS):
                expected[shard] = number + 1
            assert await counters.backlog() == expected
            waiting, age, reserved = await counters.standing()
            assert (waiting, reserved) == (6, 6)
            assert 0 <= age <= time.time() - begun + 1

    asyncio.run(scenario())


def test_whose_lease_is_over(store: Open) -> None:
    """A cluster is asked shard by shard, so there the answer names all of them."""

    async def scenario() -> None:
        async with store() as counters:
            counters.clock = str(NOW)
            first = plan("first", key(number=7, of=7))
            tally = await admit(counters, first)
            counters.clock = str(NOW + LEASE_MS // 2)
            await admit(counters, plan("second", key(number=60, of=60)))
            for after, due in ((LEASE_MS - 1, []), (LEASE_MS, [7]), (2 * LEASE_MS, [7, 60])):
                counters.clock = str(NOW + after)
                found = await counters.overdue()
                assert found in (due, list(range(64)))
                assert [shard for shard in found if await counters.expired(shard)] == due
            await counters.settle(grant(first, tally), used(1, 1))
            found = await counters.overdue()
            assert [shard for shard in found if await counters.expired(shard)] == [60]

    asyncio.run(scenario())


def test_one_server_is_asked_once(store: Open) -> None:
    async def scenario() -> None:
        async with store() as counters:
            single = counters._link._scripts is not None
            await admit(counters, plan("one", key(number=3, of=3)))
            assert (await counters.overdue() == []) is single

    asyncio.run(scenario())


def test_a_server_that_keeps_slots_apart_is_asked_shard_by_shard(valkey_cluster: Cluster) -> None:
    """As one node of a cluster does, to a client that takes it for a server of its own."""

    async def scenario() -> None:
        url = f"redis://127.0.0.1:{valkey_cluster.ports[0]}"
        counters = RedisStore(Link(url, redis.Redis.from_url(url), 5.0), epoch="test")
        try:
            assert await counters.overdue() == list(range(64))
            assert await counters._link.over_all(STANDING, (), ()) is None, "it is not asked a second time"
        finally:
            await counters.close()

    asyncio.run(scenario())
