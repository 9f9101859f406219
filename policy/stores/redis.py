"""Counters, reservations and events in Redis or Valkey: one script call, one round trip, one atomic step each.

Tenants are spread over SHARDS shards. Everything that one decision touches (the tenant's scope, the key's scope, the
reservation, the lease, the event stream) carries the shard's hash tag, so a Redis Cluster runs the same scripts. The
scripts themselves are the `.lua` files beside this module; `counters.lua` is what they share.

Every call here raises `StoreDown` when the store does not answer in time; the caller decides which way that fails.
"""

from __future__ import annotations

import json
import time
import zlib
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, cast

from policy.rules.addresses import neighbourhood
from policy.rules.decision import Reason
from policy.rules.events import Waiting
from policy.rules.faults import StoreDown
from policy.rules.judgement import Figures, Plan, Tally
from policy.rules.limits import Limits
from policy.rules.request_signature import REMEMBERED
from policy.rules.settlement import Expired, Identity
from policy.stores.redis_link import Script, connect

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from policy.rules.events import Entry
    from policy.rules.grant import Grant
    from policy.rules.settlement import Known, Settlement
    from policy.stores.redis_link import Link

__all__ = ["KEYS", "REFUSALS_KEPT", "SHARDS", "RedisStore", "Script", "connect", "open_store", "shard_of"]

SHARDS = 64  # a fixed number: it is part of the key names
LEASE_MS = 15_000  # how long a reservation stands without a sign of life from its processor
REFUSALS_KEPT = 300  # per client address and minute, each with a row of its own; the rest in one row
_NO_LIMITS = (-1,) * 6
_ENCODER = json.JSONEncoder(separators=(",", ":"))


def shard_of(tenant_id: int) -> int:
    return tenant_id % SHARDS


def shard_of_address(address: str) -> int:
    """Refusals without a tenant are spread by client address."""
    return zlib.crc32(neighbourhood(address).encode()) % SHARDS


class Keys:
    """Key names of one shard."""

    __slots__ = ("about", "events", "leases", "progress", "refusals", "reservations", "tag", "told")

    def __init__(self, shard: int) -> None:
        self.tag = f"pd:{{s{shard:02d}}}:"
        self.reservations = self.tag + "res"
        self.leases = self.tag + "open"
        self.events = self.tag + "ev"
        self.about = self.tag + "about"
        self.progress = self.tag + "prog"
        self.refusals = self.tag + "refused"
        self.told = self.tag + "told"

    def tenant(self, tenant_id: int) -> str:
        return f"{self.tag}t:{tenant_id}"

    def key(self, key_id: int) -> str:
        return f"{self.tag}k:{key_id}"

    def scope(self, name: str) -> str:
        """A scope besides those two, or anything else that a tenant's name keeps apart: see `policy.rules.sessions`."""
        return self.tag + name


KEYS = tuple(Keys(shard) for shard in range(SHARDS))
_ALL = (*(keys.events for keys in KEYS), *(keys.leases for keys in KEYS))
ADMIT, SETTLE, RENEW, EXPIRED, LOG, WAITING, CARRIED, REFUSED, CLAIM, STANDING = (
    Script(name)
    for name in ("admit", "settle", "renew", "expired", "log", "waiting", "carried", "refused", "claim", "standing")
)


def _limits(limits: Limits) -> tuple[int, ...]:
    bounds = limits.rpm, limits.tpm, limits.concurrency, limits.budget_day, limits.budget_month, limits.budget_total
    return tuple([-1 if bound is None else bound for bound in bounds])


async def open_store(url: str, *, epoch: str, kept: int = REFUSALS_KEPT, seconds: float = 1.0) -> RedisStore:
    """The counters at `url`; `seconds` is how long a call waits for a server that fell silent."""
    return RedisStore(await connect(url, seconds=seconds), epoch=epoch, kept=kept)


class RedisStore:
    """The counters. `epoch` tells this process from others; `kept` refusals of an address and minute have rows of their
    own. `clock` overrides the store's clock in milliseconds, for tests alone."""

    def __init__(self, link: Link, *, epoch: str, kept: int = REFUSALS_KEPT) -> None:
        self._link = link
        self._epoch = epoch
        self._kept = kept
        self.clock = ""

    async def ping(self) -> None:
        await self._link.run(lambda client: client.ping())

    async def close(self) -> None:
        await self._link.close()

    async def admit(self, plan: Plan, known: Known | None = None) -> Tally | None:
        """Decide and reserve; None when the scopes must be seeded with what the ledger knows now."""
        key, tenant = plan.key, plan.key.tenant
        keys = KEYS[shard_of(tenant.id)]
        own = key.limits != Limits()
        reply = await self._link.script(
            ADMIT,
            (keys.tenant(tenant.id), keys.key(key.counted), keys.reservations, keys.leases, keys.events, keys.about,
             keys.refusals, keys.progress, *(keys.scope(scope.name) for scope in plan.scopes),
             *([keys.scope(f"sg:{key.prefix}:{plan.signature}")] if plan.signature else ())),
            (self.clock, plan.request_id, plan.mode + "+" if plan.counted else plan.mode, plan.model, plan.prompt_bytes,
             plan.cap, "1" if plan.explicit else "0", plan.completions, LEASE_MS, self._epoch, _identity(plan),
             _event(plan), "" if known is None else _known(known), "1" if own else "0", *_limits(tenant.limits),
             *(_limits(key.limits) if own else _NO_LIMITS), neighbourhood(plan.address), self._kept, tenant.id,
             key.counted, len(plan.scopes), REMEMBERED * 1000 if plan.signature else "",
             *(figure for scope in plan.scopes for figure in (scope.keep_ms, *_limits(scope.limits)))),
        )  # fmt: skip
        verdict = reply[0].decode()
        if verdict == "seed":
            return None
        if verdict == "behind":
            raise StoreDown("the ledger is behind: a budget cannot be rebuilt yet")
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
            grant.endpoint, grant.scopes, grant.counts_as,
        )  # fmt: skip
        return await self._settle(
            grant.request_id, identity, settlement, epoch=grant.epoch, estimate=grant.prompt_tokens
        )

    async def settle_as(self, request_id: str, identity: Identity, settlement: Settlement) -> str:
        """As `settle`, for a reservation that `expired` gave: only while its lease is over. Returns settled, done or
        held."""
        return await self._settle(request_id, identity, settlement, sweeps=True)

    async def _settle(
        self,
        request_id: str,
        identity: Identity,
        settlement: Settlement,
        *,
        epoch: str = "",
        estimate: int = 0,
        sweeps: bool = False,
    ) -> str:
        keys = KEYS[shard_of(identity.tenant_id)]
        prompt = -1 if settlement.prompt_tokens is None else settlement.prompt_tokens
        reply = await self._link.script(
            SETTLE,
            (keys.tenant(identity.tenant_id), keys.key(identity.counted), keys.reservations, keys.leases, keys.events,
             keys.about, keys.progress, keys.scope(f"late:{request_id}"),
             *(keys.scope(name) for name in identity.scopes)),
            (self.clock, request_id, epoch, prompt, settlement.completion_tokens, "1" if settlement.exact else "0",
             _ENCODER.encode({"id": request_id, **settlement.event}), _pack(identity), estimate, identity.model,
             self._epoch, "1" if sweeps else "0"),
        )  # fmt: skip
        return cast("bytes", reply).decode()

    async def renew(self, tenant_shard: int, progress: Iterable[tuple[str, int]]) -> None:
        """Prolong leases: (request id, completion tokens so far) of one shard's requests."""
        keys = KEYS[tenant_shard]
        flat: list[object] = [item for pair in progress for item in pair]
        await self._link.script(RENEW, (keys.reservations, keys.leases, keys.progress), (self.clock, LEASE_MS, *flat))

    async def expired(self, shard: int, most: int = 100) -> list[Expired]:
        """Reservations that nobody settled in time."""
        keys = KEYS[shard]
        reply = await self._link.script(
            EXPIRED, (keys.reservations, keys.leases, keys.progress), (self.clock, most, LEASE_MS)
        )
        return [
            Expired(
                reply[i].decode(), _unpack(reply[i + 1]), int(reply[i + 2]), int(reply[i + 3]), int(reply[i + 4]) * 1000
            )
            for i in range(0, len(reply), 5)
        ]

    async def log(self, shard: int, entries: Iterable[Entry], *, again: bool = False) -> list[int]:
        """Write access-log events. `again`: they come out of a file, and most were told already. Returns the places of
        those that were not."""
        keys = KEYS[shard]
        flat: list[str] = []
        for entry in entries:
            kind = "request" if entry.refused else "open" if entry.open else ""
            flat += (neighbourhood(entry.address), kind, entry.request, entry.event)
        news: list[int] = await self._link.script(
            LOG,
            (keys.events, keys.refusals, keys.about, keys.told),
            (self.clock, self._kept, self._epoch, "1" if again else "0", *flat),
        )
        return news

    def shard_of(self, tenant_id: int | None, address: str) -> int:
        """Where an access-log event goes: to its tenant's shard, else by address."""
        return shard_of_address(address) if tenant_id is None else shard_of(tenant_id)

    async def claim(self, what: str, name: str, owner: str, milliseconds: int) -> str:
        """Take, hold, finish or drop the claim `name`: see `claim.lua`. Returns ok, done or held."""
        keys = KEYS[shard_of_address(name)]
        reply = await self._link.script(CLAIM, (keys.scope(f"once:{name}"),), (what, owner, milliseconds))
        return cast("bytes", reply).decode()

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[object]) -> Any:
        """Run a script of `sessions_redis`; the keys lie in one shard."""
        return await self._link.script(script, keys, args)

    async def ask(self, command: str, *words: object) -> Any:
        """One command of the store, on one key."""
        return await self._link.run(lambda client: client.execute_command(command, *words))

    # What the ledger writer reads.

    async def events(self, shard: int, most: int) -> Waiting:
        """The oldest events of a shard, in order."""
        keys = KEYS[shard]
        epoch, found = await self._link.script(WAITING, (keys.events, keys.about), (most,))
        return Waiting(
            shard,
            epoch.decode(),
            tuple((number, dict(zip(fields[::2], fields[1::2], strict=True))) for number, fields in found),
        )

    async def forget(self, carried: Waiting) -> None:
        """Drop events that are in PostgreSQL now."""
        keys = KEYS[carried.shard]
        last = carried.last
        ms, _, number = last.partition("-")
        await self._link.script(CARRIED, (keys.events, keys.about), (carried.epoch, last, f"{ms}-{int(number) + 1}"))

    async def backlog(self) -> list[int]:
        """Events waiting in each shard."""
        lengths: list[int] | None = await self._link.over_all(STANDING, _ALL, (self.clock, ""))
        if lengths is not None:
            return lengths
        return await self._link.all(lambda pipeline: [pipeline.xlen(keys.events) for keys in KEYS])

    async def refusals(self, shard: int) -> dict[str, int]:
        """Past the rate, of the minutes that are over: refusals per "minute|address", and answers for anybody per
        "minute|address|open"."""
        found = await self._link.script(REFUSED, (KEYS[shard].refusals,), (self.clock,))
        return {found[i].decode("utf-8", "replace"): int(found[i + 1]) for i in range(0, len(found), 2)}

    async def forget_refusals(self, shard: int, fields: Sequence[str]) -> None:
        await self._link.run(lambda client: client.hdel(KEYS[shard].refusals, *fields))

    async def overdue(self) -> list[int]:
        """Shards that may have a reservation whose lease is over."""
        found = await self._link.over_all(STANDING, _ALL, (self.clock, "1"))
        return list(range(SHARDS)) if found is None else found[3]

    async def standing(self) -> tuple[int, float, int]:
        """Events that wait, how old the oldest is (seconds; 0 for none), and reservations that are open."""
        found = await self._link.over_all(STANDING, _ALL, (self.clock, "1"))
        if found is not None:
            lengths, first, open_now, _ = found
            return sum(lengths), _age(int(first.partition(b"-")[0])) if first else 0.0, open_now
        replies = await self._link.all(
            lambda pipeline: [
                (pipeline.xlen(keys.events), pipeline.xrange(keys.events, count=1), pipeline.zcard(keys.leases))
                for keys in KEYS
            ]
        )
        oldest = [int(first[0][0].partition(b"-")[0]) for first in replies[1::3] if first]
        return sum(replies[0::3]), _age(min(oldest)) if oldest else 0.0, sum(replies[2::3])

    async def open_reservations(self) -> int:
        return sum(await self._link.all(lambda pipeline: [pipeline.zcard(keys.leases) for keys in KEYS]))


def _age(ms: int) -> float:
    """Seconds since an event's time, which is the store's."""
    return max(0.0, time.time() - ms / 1000)


def _known(known: Known) -> str:
    return _ENCODER.encode(
        {"scopes": [astuple(known.tenant), astuple(known.key)], "epoch": known.epoch, "event": known.event}
    )


def _identity(plan: Plan) -> str:
    key = plan.key
    return _pack(
        Identity(
            plan.started_at, key.tenant.id, key.tenant.name, key.id, key.prefix, plan.model, plan.endpoint,
            tuple(scope.name for scope in plan.scopes), key.counts_as or 0,
        )
    )  # fmt: skip


def _pack(identity: Identity) -> str:
    return _ENCODER.encode(
        {"s": str(identity.started_at), "t": identity.tenant_id, "tn": identity.tenant, "k": identity.key_id,
         "kp": identity.key_prefix, "model": identity.model, "ep": identity.endpoint,
         **({"x": identity.scopes} if identity.scopes else {}),
         **({"ka": identity.counts_as} if identity.counts_as else {})},
    )  # fmt: skip


def _unpack(packed: bytes) -> Identity:
    held = json.loads(packed)
    return Identity(
        int(held["s"]), held["t"], held["tn"], held["k"], held["kp"], held["model"], held["ep"],
        tuple(held.get("x", ())), held.get("ka", 0),
    )  # fmt: skip


def _event(plan: Plan) -> str:
    key = plan.key
    return _ENCODER.encode(
        {"id": plan.request_id, "s": str(plan.started_at), "t": key.tenant.id, "tn": key.tenant.name, "k": key.id,
         "kp": key.prefix, "model": plan.model, "ep": plan.endpoint, "addr": plan.address,
         "mode": plan.mode, "reason": plan.reason or ""}
    )  # fmt: skip
