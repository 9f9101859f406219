"""The database that a command works on: found, brought up to date, and a clear word where it does not answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from gateway import running
from gateway.failure import Failure, redacted
from policy.rules import store_urls
from policy.rules.faults import DatabaseDown
from policy.stores.migrate import upgrade

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


def ask(args: argparse.Namespace, work: Callable[[str], Awaitable[T]]) -> T:
    """What `work` makes of the database's URL, in an event loop of its own."""
    url = running.stores(args).database_url
    wrong = store_urls.wrong_with(url, store_urls.POSTGRESQL)
    if wrong:
        raise Failure(f"PADDOCK_DATABASE_URL: {wrong}", do="Correct it.")

    async def within() -> T:
        await upgrade(url)  # a command may be the first to see a new database
        return await work(url)

    try:
        return asyncio.run(within())
    except DatabaseDown as fault:
        raise Failure(
            "PostgreSQL does not answer",
            quote=redacted(str(fault)),
            do="Start it, or correct PADDOCK_DATABASE_URL if that is set.",
        ) from fault
