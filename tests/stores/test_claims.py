"""Claims in a real Valkey: one holder at a time, and what is done stays done."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from policy.stores.redis import RedisStore, connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.stores.cluster import Cluster, Valkey


@pytest.fixture(params=["one", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    found: Valkey | Cluster = request.getfixturevalue("valkey" if request.param == "one" else "valkey_cluster")
    return found.url


def with_store(url: str, use: Callable[[RedisStore], Awaitable[None]]) -> None:
    async def run() -> None:
        link = await connect(url)
        try:
            await use(RedisStore(link, epoch="e"))
        finally:
            await link.close()

    asyncio.run(run())


def test_one_holder_at_a_time(url: str) -> None:
    async def use(store: RedisStore) -> None:
        assert await store.claim("take", "a", "one", 60_000) == "ok"
        assert await store.claim("take", "a", "one", 60_000) == "ok"  # a call may be made twice
        assert await store.claim("take", "a", "two", 60_000) == "held"
        assert await store.claim("hold", "a", "two", 60_000) == "held"
        assert await store.claim("drop", "a", "two", 60_000) == "held"
        assert await store.claim("take", "b", "two", 60_000) == "ok"
        assert await store.claim("drop", "a", "one", 60_000) == "ok"
        assert await store.claim("take", "a", "two", 60_000) == "ok"
        assert await store.claim("finish", "a", "two", 60_000) == "ok"
        for what in ("take", "hold", "drop", "finish"):
            assert await store.claim(what, "a", "two", 60_000) == "done"

    with_store(url, use)


def test_leases_run_out(url: str) -> None:
    async def use(store: RedisStore) -> None:
        assert await store.claim("take", "c", "one", 30) == "ok"
        while await store.claim("take", "c", "two", 30) == "held":  # noqa: ASYNC110  # the store tells nobody when a lease ends
            await asyncio.sleep(0.01)
        assert await store.claim("hold", "c", "one", 60_000) == "held"  # too late
        assert await store.claim("hold", "c", "two", 60_000) == "ok"
        assert await store.claim("take", "c", "three", 60_000) == "held"  # it has a lease of a minute by now
        assert await store.claim("finish", "c", "one", 50) == "ok"  # what was answered was answered
        assert await store.claim("take", "c", "two", 60_000) == "done"
        while await store.claim("take", "c", "four", 60_000) == "done":  # noqa: ASYNC110  # likewise, when the window is over
            await asyncio.sleep(0.01)

    with_store(url, use)
