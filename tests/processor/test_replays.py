"""Claims of one process, over a store that a test can take away."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from policy.rules.faults import StoreDown
from processor import replays
from processor.replays import Replays, of_package, of_payload_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Store:
    """Claims in a dict; leases end when a test says so."""

    def __init__(self) -> None:
        self.claims: dict[str, str] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.down = False
        self.called = asyncio.Event()

    async def claim(self, what: str, name: str, owner: str, milliseconds: int) -> str:
        self.calls.append((what, name, owner))
        self.called.set()
        await asyncio.sleep(0)
        if self.down:
            raise StoreDown("gone")
        found = self.claims.get(name)
        if found == "done":
            return "done"
        if what == "finish":
            self.claims[name] = "done"
        elif found not in (None, owner):
            return "held"
        elif what == "drop":
            self.claims.pop(name, None)
        else:
            self.claims[name] = owner
        return "ok"


def with_replays(use: Callable[[Replays, Store], Awaitable[None]]) -> None:
    async def run() -> None:
        store = Store()
        claims = Replays(store, window_seconds=60)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(claims.run())
            await use(claims, store)
            running.cancel()

    asyncio.run(run())


def test_names() -> None:
    assert of_payload_id(1, "a") != of_payload_id(2, "a") != of_payload_id(2, "b")
    assert of_payload_id(1, "1 a") != of_payload_id(11, " a".strip())
    assert of_package(b"1 a") != of_payload_id(1, "a")
    assert len(of_package(b"x" * 512)) == 32


def test_taken_finished_dropped() -> None:
    async def use(claims: Replays, store: Store) -> None:
        assert await claims.take("a", "one")
        await claims.finish(["a"], "one")
        assert not await claims.take("a", "one")
        assert await claims.take("b", "one")
        await claims.drop(["b"], "one")
        assert await claims.take("b", "two")

    with_replays(use)


def test_who_finds_it_held_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "LOOK_SECONDS", 0.01)

    async def use(claims: Replays, store: Store) -> None:
        store.claims["a"] = "another process"
        waiting = asyncio.ensure_future(claims.take("a", "one"))
        await store.called.wait()
        assert not waiting.done()
        del store.claims["a"]  # its lease is over
        assert await waiting
        store.claims["b"] = "another process"
        waiting = asyncio.ensure_future(claims.take("b", "one"))
        await asyncio.sleep(0.05)
        store.claims["b"] = "done"
        assert not await waiting
        monkeypatch.setattr(replays, "PATIENCE_SECONDS", 0.05)
        store.claims["c"] = "another process"
        assert not await claims.take("c", "one")  # it lives, and is still at it

    with_replays(use)


def test_a_store_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "HOLD_SECONDS", 0.01)

    async def use(claims: Replays, store: Store) -> None:
        assert await claims.take("a", "one")
        assert await claims.take("b", "one")
        store.down = True
        with pytest.raises(StoreDown):
            await claims.take("c", "one")
        await claims.finish(["a"], "one")  # nobody has to wait for it
        claims.drop_later(["b"], "one")
        await asyncio.sleep(0.05)
        assert store.claims == {"a": "one", "b": "one"}
        store.down = False
        async with asyncio.timeout(5):
            while store.claims != {"a": "done"}:  # noqa: ASYNC110  # it is tried again every half second
                await asyncio.sleep(0.01)

    with_replays(use)


def test_what_is_under_way_is_held_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "HOLD_SECONDS", 0.01)

    async def use(claims: Replays, store: Store) -> None:
        assert await claims.take("a", "one")
        async with asyncio.timeout(5):
            while ("hold", "a", "one") not in store.calls:  # noqa: ASYNC110  # a timer has no event
                await asyncio.sleep(0.01)
        await claims.drop(["a"], "one")
        store.calls.clear()
        await asyncio.sleep(0.05)
        assert not store.calls
        assert not store.claims

    with_replays(use)
