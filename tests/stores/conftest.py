"""Fixtures of this folder."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from policy.stores.redis import RedisStore, open_store
from tests.postgresql import database, own_postgresql, postgresql
from tests.stores.cluster import valkey, valkey_cluster
from tests.stores.counting import flush

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.stores.cluster import Cluster, Valkey
    from tests.stores.counting import Open

__all__ = ["database", "own_postgresql", "postgresql", "valkey", "valkey_cluster"]


@pytest.fixture(params=["one server", "cluster"])
def store(request: pytest.FixtureRequest) -> Open:
    """Opens an empty store."""
    server: Valkey | Cluster = request.getfixturevalue("valkey" if request.param == "one server" else "valkey_cluster")

    @asynccontextmanager
    async def opened() -> AsyncIterator[RedisStore]:
        found = await open_store(server.url, epoch="test", seconds=30)
        await flush(found)
        try:
            yield found
        finally:
            await found.close()

    return opened
