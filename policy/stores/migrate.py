"""Bring a database to the schema this code was written for.

Every service calls `upgrade` when it starts. A database already there costs one look at the version table, and Alembic
is not even imported; otherwise the missing migrations run in one transaction behind an advisory lock (see
`migrations/env.py`). Migrations only ever add: in a rolling upgrade an older replica may start against a newer schema,
and simply goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from policy.rules.faults import DatabaseDown

if TYPE_CHECKING:
    from sqlalchemy import Connection

LOCK = 0x7061_6464_6F63_6B  # "paddock": the advisory lock that one migrating replica holds
_MIGRATIONS = Path(__file__).parent / "migrations"
_CONNECT_SECONDS = 5.0
_UNABLE = (asyncpg.OperatorInterventionError, asyncpg.InsufficientResourcesError)  # classes 57 and 53


def head() -> str:
    """The newest revision of this code: migrations are files named by their four-digit revision, in order."""
    return max(path.name[:4] for path in (_MIGRATIONS / "versions").glob("[0-9][0-9][0-9][0-9]_*.py"))


async def upgrade(url: str) -> bool:
    """Run what is missing; say whether the database was behind. DatabaseDown when it cannot be reached.

    Any number of processes may do this at once; within one, a call at a time: Alembic keeps its state in globals.
    """
    try:
        current = await _current(url)
        if current is not None and current >= head():
            return False
        await _run_missing(url)
    except (OSError, asyncpg.PostgresConnectionError, *_UNABLE) as error:
        raise DatabaseDown(f"{type(error).__name__}: {error}") from error  # OSError: TimeoutError is one
    return True


async def _connect(url: str) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(url, timeout=_CONNECT_SECONDS)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:  # TimeoutError is an OSError
        raise DatabaseDown(f"{type(error).__name__}: {error}") from error


async def _current(url: str) -> str | None:
    connection = await _connect(url)
    try:
        if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
            return None
        version: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
        return version
    finally:
        await connection.close()


async def _run_missing(url: str) -> None:
    from sqlalchemy import NullPool
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.ext.asyncio import create_async_engine

    # The URL goes to asyncpg as it is: every form it knows works here too, Unix sockets included.
    engine = create_async_engine(
        "postgresql+asyncpg://",
        poolclass=NullPool,
        async_creator=lambda: _connect(url),
    )
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_run_alembic)
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseDown(f"lost while migrating: {error}") from error
        raise
    finally:
        await engine.dispose()


def _run_alembic(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))  # configparser interpolates %
    config.set_main_option("path_separator", "os")
    command.upgrade(config, "head")
