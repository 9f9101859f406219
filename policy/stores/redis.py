"""Counters, reservations and events in Redis or Valkey: one script call, one round trip, one atomic step each.

Tenants are spread over SHARDS shards. Everything that one decision touches (the tenant's scope, the key's scope, the
reservation, the lease, the event stream) carries the shard's hash tag, so a Redis Cluster runs the same scripts. The
scripts themselves are the `.lua` files beside this module; `counters.lua` is what they share.

Every call here raises `StoreDown` when the store does not answer in time; the caller decides which way that fails.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from dataclasses import astuple
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import hiredis
import redis.asyncio as redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from policy.rules.decision import Reason
from policy.rules.faults import StoreDown
from policy.rules.judgement import Figures, Plan, Tally
from policy.rules.limits import Limits
from policy.rules.request_signature import REMEMBERED
from policy.rules.settlement import Expired, Identity
from policy.stores.multiplex import Multiplexed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from policy.rules.grant import Grant
    from policy.rules.settlement import Seed, Settlement

SHARDS = 64  # a fixed number: it is part of the key names
LEASE_MS = 15_000  # how long a reservation stands without a sign of life from its processor
REFUSALS_KEPT = 300  # per client address and minute, each with a row of its own; the rest in one row
_NO_LIMITS = (-1,) * 6
_ENCODER = json.JSONEncoder(separators=(",", ":"))


def shard_of(tenant_id: int) -> int:
    return tenant_id % SHARDS


def shard_of_address(address: str) -> int:
    """Refusals without a tenant are spread by client address."""
    return zlib.crc32(address.encode()) % SHARDS


class Keys:
    """Key names of one shard."""

    __slots__ = ("epoch", "events", "leases", "progress", "ratios", "refusals", "reservations", "tag")

    def __init__(self, shard: int) -> None:
        self.tag = f"pd:{{s{shard:02d}}}:"
        self.reservations = self.tag + "res"
        self.leases = self.tag + "open"
        self.events = self.tag + "ev"
        self.epoch = self.tag + "epoch"
        self.ratios = self.tag + "ratio"
        self.progress = self.tag + "prog"
        self.refusals = self.tag + "refused"

    def tenant(self, tenant_id: int) -> str:
        return f"{self.tag}t:{tenant_id}"

    def key(self, key_id: int) -> str:
        return f"{self.tag}k:{key_id}"

    def scope(self, name: str) -> str:
        """A scope besides those two, or anything else that a tenant's name keeps apart: see `policy.rules.sessions`."""
        return self.tag + name


KEYS = tuple(Keys(shard) for shard in range(SHARDS))


class Script:
    """A script and its digest; the server learns the text once, after a restart again."""

    __slots__ = ("sha", "text")

    def __init__(self, name: str) -> None:
        here = files("policy.stores")
        self.text = here.joinpath("counters.lua").read_text() + here.joinpath(f"{name}.lua").read_text()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


ADMIT, SETTLE, RENEW, EXPIRED, LOG = (Script(name) for name in ("admit", "settle", "renew", "expired", "log"))
CLAIM = Script("claim")


def _limits(limits: Limits) -> tuple[int, ...]:
    bounds = (
        limits.rpm,
        limits.tpm,
        limits.concurrency,
        limits.budget_day,
        limits.budget_month,
        limits.budget_total,
    )
    return tuple(-1 if bound is None else bound for bound in bounds)


async def connect(url: str, *, seconds: float = 1.0) -> redis.Redis | RedisCluster:
    """A client for `url`; a server that says it is part of a cluster gets the cluster client.

    `redis+unix:///path` and `unix:///path` name a Unix socket.
    """
    retry = Retry(NoBackoff(), 1)  # one more try on a fresh connection: an idle one may have been closed
    url = url.replace("redis+unix://", "unix://", 1)
    single = redis.Redis.from_url(
        url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=retry, retry_on_error=[ConnectionError],
        max_connections=512,
    )  # fmt: skip
    if urlsplit(url).scheme == "unix":
        return single
    try:
        mode = await single.info("cluster")
    except RedisError:
        return single
    if not mode.get("cluster_enabled"):
        return single
    await single.aclose()
    return RedisCluster.from_url(url, socket_timeout=seconds, socket_connect_timeout=seconds)


async def open_store(url: str, *, epoch: str, seconds: float = 1.0) -> RedisStore:
    """The counters at `url`: one server, whose script calls share a connection, or a cluster."""
    client = await connect(url, seconds=seconds)
    one = isinstance(client, redis.Redis)
    return RedisStore(client, epoch=epoch, scripts=Multiplexed(url, patience=seconds) if one else None)


class RedisStore:
    """The counters. `clock` overrides the store's clock in milliseconds, for tests alone."""

    def __init__(self, client: redis.Redis | RedisCluster, *, epoch: str, scripts: Multiplexed | None = None) -> None:
        """`scripts`: a connection of one server that all script calls share; None runs them through `client`."""
        self._client = client
        self._scripts = scripts
        self._epoch = epoch
        self.clock = ""

    async def ping(self) -> None:
        await self._run(self._client.ping())

    async def close(self) -> None:
        if self._scripts is not None:
            await self._scripts.close()
        await self._client.aclose()

    async def admit(self, plan: Plan, seed: tuple[Seed, Seed] | None = None) -> Tally | None:
        """Decide and reserve; None when the scopes must first be seeded from PostgreSQL."""
        key, tenant = plan.key, plan.key.tenant
        keys = KEYS[shard_of(tenant.id)]
        own = key.limits != Limits()
        reply = await self._call(
            ADMIT,
            (keys.tenant(tenant.id), keys.key(key.id), keys.reservations, keys.leases, keys.events, keys.epoch,
             keys.ratios, keys.refusals, *(keys.scope(scope.name) for scope in plan.scopes),
             *([keys.scope(f"sg:{key.prefix}:{plan.signature}")] if plan.signature else ())),
            (self.clock, plan.request_id, plan.mode + "+" if plan.counted else plan.mode, plan.model,
             plan.prompt_bytes, plan.cap, "1" if plan.explicit else "0", plan.completions, LEASE_MS, self._epoch,
             _identity(plan), _event(plan), "" if seed is None else json.dumps([astuple(s) for s in seed]),
             "1" if own else "0", *_limits(tenant.limits), *(_limits(key.limits) if own else _NO_LIMITS),
             plan.address, REFUSALS_KEPT, len(plan.scopes), REMEMBERED * 1000 if plan.signature else "",
             *(figure for scope in plan.scopes for figure in (scope.keep_ms, *_limits(scope.limits)))),
        )  # fmt: skip
        verdict = reply[0].decode()
        if verdict == "seed":
            return None
        limits = (tenant.limits, *((key.limits,) if own else ()), *(scope.limits for scope in plan.scopes))
        figures = [int(n) for n in reply[7:]]
        return Tally(
            refused=None if verdict == "ok" else Reason(verdict),
            wait_ms=int(reply[1]),
            cap=int(reply[2]),
            prompt_tokens=int(reply[3]),
            epoch=reply[4].decode(),
            recorded=reply[6] == 0,
            scopes=tuple(Figures(limits[i], *figures[7 * i : 7 * i + 7]) for i in range(len(figures) // 7)),
        )

    async def settle(self, grant: Grant, settlement: Settlement) -> str:
        """Replace the reservation of `grant` by what was used; safe to repeat. Returns settled, done or late."""
        identity = Identity(
            grant.started_at, grant.tenant_id, grant.tenant, grant.key_id, grant.key_prefix, grant.model,
            grant.endpoint, grant.scopes,
        )  # fmt: skip
        return await self.settle_as(
            grant.request_id, identity, settlement, epoch=grant.epoch, estimate=grant.prompt_tokens
        )

    async def settle_as(
        self, request_id: str, identity: Identity, settlement: Settlement, *, epoch: str = "", estimate: int = 0
    ) -> str:
        """As `settle`, for the sweeper, which has the stored identity and no grant."""
        keys = KEYS[shard_of(identity.tenant_id)]
        prompt = -1 if settlement.prompt_tokens is None else settlement.prompt_tokens
        if not epoch:
            epoch = ((await self._run(self._client.get(keys.epoch))) or b"").decode()
        reply = await self._call(
            SETTLE,
            (keys.tenant(identity.tenant_id), keys.key(identity.key_id), keys.reservations, keys.leases, keys.events,
             keys.epoch, keys.ratios, keys.progress, f"{keys.tag}late:{request_id}",
             *(keys.scope(name) for name in identity.scopes)),
            (self.clock, request_id, epoch, prompt, settlement.completion_tokens,
             "1" if settlement.exact else "0", json.dumps({"id": request_id, **settlement.event}),
             _pack(identity), estimate),
        )  # fmt: skip
        return cast("bytes", reply).decode()

    async def renew(self, tenant_shard: int, progress: Iterable[tuple[str, int]]) -> None:
        """Prolong leases: (request id, completion tokens so far) of one shard's requests."""
        keys = KEYS[tenant_shard]
        flat: list[object] = [item for pair in progress for item in pair]
        await self._call(RENEW, (keys.reservations, keys.leases, keys.progress), (self.clock, LEASE_MS, *flat))

    async def expired(self, shard: int, most: int = 100) -> list[Expired]:
        keys = KEYS[shard]
        reply = await self._call(EXPIRED, (keys.reservations, keys.leases, keys.progress), (self.clock, most))
        return [Expired(reply[i].decode(), _unpack(reply[i + 1]), int(reply[i + 2])) for i in range(0, len(reply), 3)]

    async def log(self, shard: int, entries: Iterable[tuple[str, bool, str]]) -> int:
        """Write access-log events: (client address, an unrecorded refusal?, event JSON). Returns how many were only
        counted, being past the rate."""
        keys = KEYS[shard]
        flat: list[object] = [item for a, refused, e in entries for item in (a, "1" if refused else "0", e)]
        return int(await self._call(LOG, (keys.events, keys.refusals), (self.clock, REFUSALS_KEPT, *flat)))

    async def claim(self, what: str, name: str, owner: str, milliseconds: int) -> str:
        """Take, hold, finish or drop the claim `name`: see `claim.lua`. Returns ok, done or held."""
        keys = KEYS[shard_of_address(name)]
        return cast("bytes", await self._call(CLAIM, (f"{keys.tag}once:{name}",), (what, owner, milliseconds))).decode()

    # What the ledger writer reads.

    async def events(self, shard: int, most: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """The oldest events of a shard, in order."""
        return cast(
            "list[tuple[bytes, dict[bytes, bytes]]]",
            await self._run(self._client.xrange(KEYS[shard].events, count=most)),
        )

    async def backlog(self) -> list[int]:
        """Events waiting in each shard."""
        pipe = self._client.pipeline(transaction=False) if isinstance(self._client, redis.Redis) else None
        if pipe is None:
            return [await self._run(self._client.xlen(keys.events)) for keys in KEYS]
        for keys in KEYS:
            pipe.xlen(keys.events)
        return cast("list[int]", await self._run(pipe.execute()))

    async def newest(self, tenant_id: int) -> bytes | None:
        """The id of the youngest event of a tenant's shard; None where nothing waits."""
        found = await self._run(self._client.xrevrange(KEYS[shard_of(tenant_id)].events, count=1))
        return found[0][0] if found else None

    async def carried(self, tenant_id: int, event: bytes) -> bool:
        """Whether the ledger has everything up to and with `event`."""
        return not await self._run(self._client.xrange(KEYS[shard_of(tenant_id)].events, max=event, count=1))

    def shard_of(self, tenant_id: int | None, address: str) -> int:
        """Where an access-log event goes: to its tenant's shard, else by address."""
        return shard_of_address(address) if tenant_id is None else shard_of(tenant_id)

    async def forget(self, shard: int, last: bytes) -> None:
        """Drop the events of a shard up to and with id `last`: they are in PostgreSQL."""
        ms, _, seq = last.decode().partition("-")
        await self._run(self._client.xtrim(KEYS[shard].events, minid=f"{ms}-{int(seq) + 1}", approximate=False))

    async def refusals(self, shard: int) -> dict[str, int]:
        """Refusals per "minute|address", those with rows of their own included."""
        found = cast("dict[bytes, bytes]", await self._run(self._client.hgetall(KEYS[shard].refusals)))
        return {field.decode("utf-8", "replace"): int(count) for field, count in found.items()}

    async def forget_refusals(self, shard: int, fields: Sequence[str]) -> None:
        await self._run(self._client.hdel(KEYS[shard].refusals, *fields))

    async def standing(self) -> tuple[int, float, int]:
        """Events that wait, how old the oldest is (seconds; 0 for none), and reservations that are open."""
        pipe = self._client.pipeline(transaction=False)
        for keys in KEYS:
            pipe.xlen(keys.events)
            pipe.hlen(keys.reservations)
        replies = await self._run(pipe.execute())
        waiting, reserved = replies[0::2], replies[1::2]
        if not any(waiting):
            return 0, 0.0, sum(reserved)
        pipe = self._client.pipeline(transaction=False)
        for keys, count in zip(KEYS, waiting, strict=True):
            if count:
                pipe.xrange(keys.events, count=1)
        found = [events[0][0] for events in await self._run(pipe.execute()) if events]  # gone since: it was carried
        oldest = min((int(id.partition(b"-")[0]) / 1000 for id in found), default=time.time())
        return sum(waiting), max(0.0, time.time() - oldest), sum(reserved)  # ids are the store's time

    async def open_reservations(self) -> int:
        return sum([await self._run(self._client.hlen(keys.reservations)) for keys in KEYS])

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[object]) -> Any:
        """Run a script of `sessions_redis`; the keys lie in one shard."""
        return await self._call(script, keys, args)

    async def ask(self, command: str, *words: object) -> Any:
        """One command of the store, on one key."""
        return await self._run(self._client.execute_command(command, *cast("Sequence[str]", words)))

    async def _call(self, script: Script, keys: Sequence[str], args: Sequence[object]) -> Any:
        words = [arg if isinstance(arg, (str, bytes, int)) else str(arg) for arg in args]
        try:
            if self._scripts is None:
                return await self._evaluate(script, keys, words)
            try:
                return await _run_script(self._scripts, script, keys, words)
            except ConnectionError:
                # An idle connection may have been closed, and a restarted server is another one. Every script may be
                # run twice for one request: what it decided the first time gives way, or stands.
                return await _run_script(self._scripts, script, keys, words)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreDown(_short(error)) from error

    async def _evaluate(self, script: Script, keys: Sequence[str], words: list[str | bytes | int]) -> Any:
        arguments = cast("list[str]", words)
        try:
            return await self._client.evalsha(script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self._client.eval(script.text, len(keys), *keys, *arguments)

    async def _run(self, awaitable: Any) -> Any:
        try:
            return await awaitable
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreDown(_short(error)) from error


def _short(error: Exception) -> str:
    # A script error may quote its arguments: the class is enough for a log, save for what the server says of itself.
    return type(error).__name__ if isinstance(error, ResponseError) else f"{type(error).__name__}: {error}"[:200]


def _identity(plan: Plan) -> str:
    key = plan.key
    return _pack(
        Identity(
            plan.started_at, key.tenant.id, key.tenant.name, key.id, key.prefix, plan.model, plan.endpoint,
            tuple(scope.name for scope in plan.scopes),
        )
    )  # fmt: skip


def _pack(identity: Identity) -> str:
    # Microseconds travel as text: Lua's JSON keeps 14 digits of a number, and they have 16.
    return _ENCODER.encode(
        {"s": str(identity.started_at), "t": identity.tenant_id, "tn": identity.tenant, "k": identity.key_id,
         "kp": identity.key_prefix, "model": identity.model, "ep": identity.endpoint,
         **({"x": identity.scopes} if identity.scopes else {})},
    )  # fmt: skip


def _unpack(packed: bytes) -> Identity:
    held = json.loads(packed)
    return Identity(
        int(held["s"]), held["t"], held["tn"], held["k"], held["kp"], held["model"], held["ep"],
        tuple(held.get("x", ())),
    )  # fmt: skip


def _event(plan: Plan) -> str:
    key = plan.key
    return _ENCODER.encode(
        {"id": plan.request_id, "s": str(plan.started_at), "t": key.tenant.id, "tn": key.tenant.name, "k": key.id,
         "kp": key.prefix, "model": plan.model, "ep": plan.endpoint, "addr": plan.address,
         "mode": plan.mode, "reason": plan.reason or ""},
    )  # fmt: skip


async def _run_script(
    connection: Multiplexed, script: Script, keys: Sequence[str], words: Sequence[str | bytes | int]
) -> Any:
    reply = await connection.execute("EVALSHA", script.sha, len(keys), *keys, *words)
    if isinstance(reply, hiredis.ReplyError):
        if not str(reply).startswith("NOSCRIPT"):
            raise ResponseError(str(reply))
        reply = await connection.execute("EVAL", script.text, len(keys), *keys, *words)
        if isinstance(reply, hiredis.ReplyError):
            raise ResponseError(str(reply))
    return reply
