"""The book of sessions: swapped as one value, believed no longer than it may be, and never without its connection."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from policy.admission import session_book
from policy.admission.session_book import TTL, SessionBook
from policy.rules.faults import DatabaseDown
from policy.rules.session_token import KeySet, Secret, SigningKey
from policy.rules.sessions import Directory, SessionPolicy
from policy.rules.tenants import Tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEYS = KeySet.of([SigningKey.derive(Secret(b"s" * 32), "k", b"1" * 32, 0.0)], 1.0, 0)
POLICY = SessionPolicy(Tenant(1, "acme"), frozenset({"https://a.example"}))


class Store:
    """A database that a test switches off, and that counts what it is asked."""

    def __init__(self) -> None:
        self.directory = Directory({1: POLICY}, {}, frozenset(), KEYS)
        self.up = True
        self.loads = 0
        self.rotations: list[float] = []
        self.notices: asyncio.Queue[str | None] = asyncio.Queue()

    async def load(self, now: float, settled: float) -> Directory:
        if not self.up:
            raise DatabaseDown("off")
        self.loads += 1
        return self.directory

    async def rotate(self, kid: str, salt: bytes, older_than: float) -> bool:
        self.rotations.append(older_than)
        assert len(salt) == 32
        return True

    @contextlib.asynccontextmanager
    async def watch(self) -> AsyncIterator[Store]:
        if not self.up:
            raise DatabaseDown("off")
        yield self

    async def notice(self) -> str:
        found = await self.notices.get()
        if found is None:
            raise DatabaseDown("lost")
        return found


@contextlib.asynccontextmanager
async def running(book: SessionBook) -> AsyncIterator[None]:
    task = asyncio.ensure_future(book.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def settled(store: Store, loads: int) -> None:
    async with asyncio.timeout(5):
        while store.loads < loads:  # noqa: ASYNC110  # the store counts for several waiters
            await asyncio.sleep(0.01)


def test_what_is_not_known_is_not_believed() -> None:
    book = SessionBook(Store(), rotate_after=None)
    assert not book.on
    with pytest.raises(DatabaseDown):
        book.current()


def test_changes_are_followed_and_others_changes_are_not() -> None:
    async def scenario() -> None:
        store = Store()
        book = SessionBook(store, rotate_after=None)
        async with running(book):
            await settled(store, 1)
            assert book.current() is store.directory
            assert book.on
            for notice in ("key:nz_abcdefghi", "tenant:7"):
                store.notices.put_nowait(notice)
            await asyncio.sleep(0.2)
            assert store.loads == 1
            store.directory = Directory({}, {}, frozenset(), KEYS)
            for _ in range(50):
                store.notices.put_nowait("sessions")
            store.notices.put_nowait("tenant:1")
            await settled(store, 2)
            await asyncio.sleep(0.2)
            assert book.current() is store.directory
            assert not book.on
            assert store.loads <= 4, "changes that come together are one load or two"

    asyncio.run(scenario())


def test_it_is_refreshed_without_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        store = Store()
        async with running(SessionBook(store, rotate_after=None)):
            await settled(store, 4)

    monkeypatch.setattr(session_book, "REFRESH", 0.05)
    asyncio.run(scenario())


def test_a_lost_connection_is_noticed_at_once_and_made_again() -> None:
    async def scenario() -> None:
        store = Store()
        book = SessionBook(store, rotate_after=None)
        async with running(book):
            await settled(store, 1)
            store.up = False
            store.notices.put_nowait(None)
            await asyncio.sleep(0.05)
            with pytest.raises(DatabaseDown):
                book.current()
            assert not book.on
            store.up = True
            await settled(store, 2)
            assert book.current() is store.directory

    asyncio.run(scenario())


def test_nothing_is_believed_for_longer_than_half_a_minute() -> None:
    """A store that neither answers nor says that it is gone."""

    async def scenario() -> None:
        store, now = Store(), [0.0]
        book = SessionBook(store, rotate_after=None, clock=lambda: now[0])
        async with running(book):
            await settled(store, 1)
            now[0] = TTL
            assert book.current() is store.directory
            now[0] = TTL + 0.1
            with pytest.raises(DatabaseDown):
                book.current()

    asyncio.run(scenario())


@pytest.mark.parametrize(("after", "asked"), [(None, []), (86400.0, [86400.0])])
def test_keys_are_replaced_when_they_are_old(after: float | None, asked: list[float]) -> None:
    async def scenario() -> None:
        store = Store()
        async with running(SessionBook(store, rotate_after=after)):
            await settled(store, 1)
            await asyncio.sleep(0.05)
            assert store.rotations == asked

    asyncio.run(scenario())
