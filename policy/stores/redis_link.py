"""The way to Redis or Valkey: one server or a cluster, and every failure as one fault.

Scripts, which are what requests wait for, go to one server over a connection that all of them share, and through the
cluster client where the server says that it is part of a cluster. Where it could not be asked at the start, its first
MOVED says it.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import hiredis
import redis.asyncio as redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MovedError, NoScriptError, RedisClusterException, RedisError, ResponseError

from policy.rules.faults import StoreDown
from policy.stores.multiplex import Multiplexed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from redis.asyncio.client import Pipeline
    from redis.asyncio.cluster import ClusterPipeline

T = TypeVar("T")
Client: TypeAlias = "redis.Redis | RedisCluster"

_CONNECTIONS = 512  # at most, to each server


class _Apart(Exception):
    """The server runs no script over keys of several slots."""


class Script:
    """A script and its digest; a server learns the text once, after a restart again."""

    __slots__ = ("sha", "text")

    def __init__(self, name: str) -> None:
        here = files("policy.stores")
        self.text = here.joinpath("counters.lua").read_text() + here.joinpath(f"{name}.lua").read_text()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Link:
    """One server or a cluster. Every call raises StoreDown where the store does not answer."""

    def __init__(self, url: str, client: Client, seconds: float) -> None:
        self.client = client
        self._url = url
        self._seconds = seconds
        self._scripts = Multiplexed(url, patience=seconds) if isinstance(client, redis.Redis) else None
        self._apart = False

    async def run(self, command: Callable[[Any], Awaitable[T]]) -> T:
        """Run a command of the client. The client's two kinds have the same commands and no common type."""
        try:
            return await command(self.client)
        except MovedError as error:
            await self._join_cluster()
            raise StoreDown("it is a cluster: the next call finds its nodes") from error
        except (RedisError, RedisClusterException, OSError) as error:  # TimeoutError is an OSError
            raise StoreDown(_short(error)) from error

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[object]) -> Any:
        """Run a script: one round trip, save where the server does not know it yet."""
        words = [arg if isinstance(arg, (str, bytes, int)) else str(arg) for arg in args]

        async def run(_client: Any) -> Any:
            if self._scripts is None:
                return await _through_client(self.client, script, keys, words)
            try:
                return await _through_one(self._scripts, script, keys, words)
            except ConnectionError:
                # An idle connection may have been closed, and a restarted server is another one. Every script may be
                # run twice for one request: what it decided the first time gives way, or stands.
                return await _through_one(self._scripts, script, keys, words)

        return await self.run(run)

    async def over_all(self, script: Script, keys: Sequence[str], args: Sequence[object]) -> Any:
        """Run a script over keys of many slots, in one round trip; None where slots are kept apart."""
        if self._scripts is None or self._apart:
            return None
        try:
            return await self.script(script, keys, args)
        except _Apart:
            self._apart = True
            return None

    async def _join_cluster(self) -> None:
        if self._scripts is None:
            return
        scripts, single = self._scripts, self.client
        self._scripts, self.client = None, _cluster(self._url, self._seconds)
        await scripts.close()
        await single.aclose()

    async def all(self, ask: Callable[[Pipeline | ClusterPipeline], object]) -> list[Any]:
        """The answers to all commands that `ask` puts into a pipeline, in one round trip to each server."""

        async def execute(client: Any) -> list[Any]:
            pipeline = client.pipeline(transaction=False) if isinstance(client, redis.Redis) else client.pipeline()
            ask(pipeline)
            answers: list[Any] = await pipeline.execute()
            return answers

        return await self.run(execute)

    async def close(self) -> None:
        if self._scripts is not None:
            await self._scripts.close()
        await self.client.aclose()


async def connect(url: str, *, seconds: float = 1.0) -> Link:
    """A link to `url` (redis://, rediss://, unix:///path or redis+unix:///path). It does not fail: calls do, `seconds`
    after a server fell silent."""
    url = url.replace("redis+unix://", "unix://", 1)
    single = redis.Redis.from_url(
        url,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        retry=_retry(),
        max_connections=_CONNECTIONS,
    )
    if not url.startswith("unix:"):  # a cluster speaks TCP
        try:
            mode = await single.info("cluster")
        except (RedisError, OSError):  # not there yet, or not to be asked by us: its calls will tell
            mode = {}
        if mode.get("cluster_enabled"):
            await single.aclose()
            return Link(url, _cluster(url, seconds), seconds)
    return Link(url, single, seconds)


def _cluster(url: str, seconds: float) -> RedisCluster:
    return RedisCluster.from_url(
        url,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        retry=_retry(),
        max_connections=_CONNECTIONS,
    )


def _retry() -> Retry:
    return Retry(NoBackoff(), 1)  # one more try on a fresh connection: an idle one may have been closed


async def _through_client(client: Any, script: Script, keys: Sequence[str], words: Sequence[str | bytes | int]) -> Any:
    try:
        return await client.evalsha(script.sha, len(keys), *keys, *words)
    except NoScriptError:
        return await client.eval(script.text, len(keys), *keys, *words)


async def _through_one(
    connection: Multiplexed, script: Script, keys: Sequence[str], words: Sequence[str | bytes | int]
) -> Any:
    reply = await connection.execute("EVALSHA", script.sha, len(keys), *keys, *words)
    if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
        reply = await connection.execute("EVAL", script.text, len(keys), *keys, *words)
    if isinstance(reply, hiredis.ReplyError):
        kind, _, rest = str(reply).partition(" ")
        if kind == "CROSSSLOT":
            raise _Apart
        raise MovedError(rest) if kind == "MOVED" else ResponseError(str(reply))
    return reply


def _short(error: Exception) -> str:
    # A script error may quote its arguments: the class is enough for a log, save for what the server says of itself.
    return type(error).__name__ if isinstance(error, ResponseError) else f"{type(error).__name__}: {error}"[:200]
