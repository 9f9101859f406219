"""`paddock doctor`: looks at a deployment from end to end and says in words what is wrong.

It asks what an operator would ask by hand, from the stores up to a model's answer, and changes nothing. With
PADDOCK_KEY it sends one request of one token, which is charged to that key.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

import asyncpg
import httpx
from pydantic import ValidationError
from redis.exceptions import ResponseError

from gateway import running
from gateway.failure import Failure, redacted
from policy.rules.faults import StoreDown
from policy.settings import PolicySettings
from policy.stores import migrate
from policy.stores import redis as redis_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from gateway.running import Stores

T = TypeVar("T")
_PATIENCE = 10.0  # seconds
_GENERATION = 120.0  # seconds: a model may have to be loaded
_SKEW = 2.0  # seconds that clocks may differ: budgets turn at midnight, signed sessions have 30 s
_OLDEST_POSTGRESQL = 140000


@dataclass(frozen=True, slots=True)
class Result:
    """What was looked at and what was found; `mend` where it is not well."""

    what: str
    well: bool
    found: str
    mend: str = ""

    def __str__(self) -> str:
        line = f"{'ok ' if self.well else 'BAD'}  {self.what:<16} {self.found}"
        return line if self.well or not self.mend else f"{line}\n     {'':<16} {self.mend}"


def doctor(args: argparse.Namespace) -> int:
    """0: everything is well; 1: something is not."""
    results = asyncio.run(_examine(args))
    if args.json:
        print(
            json.dumps({"ok": all(one.well for one in results), "results": [asdict(one) for one in results]}, indent=2)
        )
    else:
        for one in results:
            print(one)
    return 0 if all(one.well for one in results) else 1


async def _examine(args: argparse.Namespace) -> list[Result]:
    results: list[Result] = []
    try:
        settings = PolicySettings()
    except (ValidationError, ValueError) as error:
        return [Result("settings", False, redacted(str(error)), "Correct the environment of the services.")]
    try:
        stores: Stores | None = running.stores(args)
    except Failure as failure:
        stores = None
        results.append(Result("stores", False, failure.what, failure.do))
    if stores is not None:
        results += await _postgresql(stores.database_url)
        if stores.redis_url is not None:
            results += await _redis(stores.redis_url)
    url = args.url or (stores.running.url if stores is not None and stores.running is not None else None)
    if url is None:
        results.append(Result("gateway", False, "its address is not known", "Name it with --url http://HOST:PORT."))
        return results
    try:
        httpx.URL(url)
    except httpx.InvalidURL as error:
        results.append(
            Result("gateway", False, f"{url} is no address: {error}", "Name it with --url http://HOST:PORT.")
        )
        return results
    async with httpx.AsyncClient(base_url=url, timeout=_PATIENCE, trust_env=False, verify=not args.insecure) as client:
        through = await _told("gateway", lambda: _gateway(client), f"Does Envoy run, and is {url} its address?")
        results += through
        if all(one.well for one in through if one.what == "gateway"):
            results += await _told("limits", lambda: _limits(client, settings.max_request_body_bytes), "")
            key = os.environ.get("PADDOCK_KEY")
            if key:
                results += await _told("key", lambda: _round_trip(client, key), "See the logs of policy and processor.")
    return results


async def _told(what: str, look: Callable[[], Awaitable[list[Result]]], mend: str) -> list[Result]:
    try:
        return await look()
    except httpx.HTTPError as error:
        return [Result(what, False, str(error) or type(error).__name__, mend)]


# The stores.


async def _postgresql(url: str) -> list[Result]:
    try:
        connection = await asyncpg.connect(url, timeout=_PATIENCE)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        said = redacted(str(error)) or type(error).__name__
        return [Result("postgresql", False, said, "Start it, or correct PADDOCK_DATABASE_URL.")]
    try:
        version = connection.get_server_version()
        number = int(await connection.fetchval("SHOW server_version_num"))
        now: datetime = await connection.fetchval("SELECT clock_timestamp()")
        skew = (datetime.now(UTC) - now).total_seconds()
        found = f"PostgreSQL {version.major}.{version.minor}"
        results = [Result("postgresql", number >= _OLDEST_POSTGRESQL, found, "Paddock needs PostgreSQL 14 or later.")]
        results += [_clock("postgresql", skew)]
        if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
            return [*results, Result("schema", False, "there is none", "Start policy: it makes the schema.")]
        revision = await connection.fetchval("SELECT version_num FROM alembic_version")
        mend = "Start a policy of this version: it brings the schema up to date."
        results.append(Result("schema", revision >= migrate.head(), f"revision {revision} of {migrate.head()}", mend))
        return results
    finally:
        await connection.close()


async def _redis(url: str) -> list[Result]:
    try:
        store = await redis_store.open_store(url, epoch="doctor", seconds=_PATIENCE)
        try:
            seconds, micros = await store.ask("TIME")
            try:
                settings = await store.ask("CONFIG", "GET", "maxmemory-policy")
            except ResponseError:  # hosted ones do not tell
                settings = ()
        finally:
            await store.close()
    except StoreDown as fault:
        return [Result("redis", False, redacted(str(fault)), "Start it, or correct PADDOCK_REDIS_URL.")]
    skew = time.time() - (int(seconds) + int(micros) / 1e6)
    named = [one.decode() if isinstance(one, bytes) else str(one) for one in settings or ()]
    evicts = len(named) == 2 and named[1] != "noeviction"
    found = f"answers; maxmemory-policy {named[1]}" if len(named) == 2 else "answers"
    mend = "Set maxmemory-policy noeviction: a counter that vanishes is a budget that was never spent."
    return [Result("redis", not evicts, found, mend), _clock("redis", skew)]


def _clock(whose: str, skew: float) -> Result:
    mend = "Synchronise the clocks (NTP): budgets turn at midnight UTC, and signed requests have 30 seconds."
    return Result(f"{whose} clock", abs(skew) <= _SKEW, f"{skew:+.1f} s", mend)


# The way through Envoy.


async def _gateway(client: httpx.AsyncClient) -> list[Result]:
    alive = await client.get("/healthz")
    results = [Result("gateway", alive.status_code == 200, f"/healthz {alive.status_code}", "Is this Paddock's Envoy?")]
    if "date" in alive.headers:
        skew = (datetime.now(UTC) - parsedate_to_datetime(alive.headers["date"])).total_seconds()
        results.append(_clock("envoy", max(skew - 1, 0.0) if skew > 0 else skew))  # the header has whole seconds
    results += _ready(await client.get("/readyz"))
    for method, path, wanted, lack in (
        ("GET", "/api/tags", 401, "Requests without a key are not refused: look at ext_authz with `paddock check`."),
        ("POST", "/api/pull", 403, "A mutating path is not blocked: look at the routes with `paddock check`."),
        ("DELETE", "/API/Delete", 403, "A mutating path is not blocked: look at the routes with `paddock check`."),
    ):
        answer = await client.request(method, path)
        results.append(Result("refusals", answer.status_code == wanted, f"{method} {path} {answer.status_code}", lack))
        if "x-request-id" not in answer.headers:
            mend = "Set always_set_request_id_in_response in Envoy's configuration."
            results.append(Result("request id", False, f"{method} {path} came back without one", mend))
    return results


def _ready(answer: httpx.Response) -> list[Result]:
    mend = {
        "postgresql": "Policy does not reach PostgreSQL: PADDOCK_DATABASE_URL of the policy service.",
        "redis": "Policy does not reach Redis: PADDOCK_REDIS_URL of the policy service.",
        "ollama": "No Ollama answers policy: PADDOCK_UPSTREAMS of the policy service; is Ollama running? "
        "Does it demand a key (PADDOCK_UPSTREAM_KEY)?",
    }
    try:
        checks = dict(answer.json()["checks"])
    except (ValueError, KeyError, TypeError):
        return [Result("readiness", False, f"/readyz {answer.status_code}", "Envoy does not reach policy: its log.")]
    return [
        Result(f"policy: {name}", state == "ok", str(state), mend.get(name, "See policy's log."))
        for name, state in checks.items()
    ] or [Result("readiness", answer.status_code == 200, f"/readyz {answer.status_code}")]


async def _limits(client: httpx.AsyncClient, limit: int) -> list[Result]:
    """A body of the limit is read (and refused for want of a key), one byte more is too large."""
    results = []
    for size, wanted in ((limit, {401}), (limit + 1, {413})):
        answer = await client.post("/api/chat", content=b" " * size, headers={"content-type": "application/json"})
        mend = (
            f"This environment says PADDOCK_MAX_REQUEST_BODY_BYTES={limit}; Envoy has another figure. Write the same "
            "number into envoy.yaml and into the environment of both services (`paddock check` names the places)."
        )
        found = f"a body of {size} bytes: {answer.status_code}"
        results.append(Result("body limit", answer.status_code in wanted, found, mend))
    return results


# A key, from the front door to a model and back.


async def _round_trip(client: httpx.AsyncClient, key: str) -> list[Result]:
    headers = {"authorization": f"Bearer {key}"}
    tags = await client.get("/api/tags", headers=headers)
    if tags.status_code != 200:
        return [Result("key", False, f"/api/tags {tags.status_code}: {_said(tags)}", "Is it a key of this gateway?")]
    names = [str(one["name"]) for one in tags.json()["models"]]
    results = [Result("key", bool(names), f"may use {len(names)} models", "Allow some: `paddock allow-model`.")]
    for name in names:
        began = time.monotonic()
        body = {
            "model": name,
            "messages": [{"role": "user", "content": "hi"}],
            "stream": False,
            "options": {"num_predict": 1},
        }
        answer = await client.post("/api/chat", headers=headers, json=body, timeout=_GENERATION)
        if answer.status_code == 400 and name != names[-1]:
            continue  # a model that only embeds
        found = f"{name}: {answer.status_code} in {time.monotonic() - began:.1f} s"
        if answer.status_code != 200:
            found += f", {_said(answer)}"
        mend = f"`paddock audit --request-id {answer.headers.get('x-request-id', '')}` says what became of it."
        if answer.status_code == 503:
            mend += " Envoy also says 503 while it reaches no processor to settle with (processor_edge, port 9005)."
        return [*results, Result("round trip", answer.status_code == 200, found, mend)]
    return results


def _said(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "not in the gateway's words: another server answers there"
