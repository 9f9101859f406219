"""Requests for the counters to count, for tests: who asks, for how much, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from policy.rules.grant import Duty, Grant
from policy.rules.judgement import Mode, Plan, Tally
from policy.rules.limits import Limits
from policy.rules.settlement import Known, Seed, Settlement
from policy.rules.tenants import Key, Tenant

if TYPE_CHECKING:
    from policy.stores.redis import RedisStore

NOW = 1_800_000_000_000
DAY = NOW // 86_400_000
MONTH = 202701
UNUSED = Known(Seed(0, 0, 0, 0, 0), Seed(0, 0, 0, 0, 0))
NOTHING = Known(Seed(DAY, 0, MONTH, 0, 0), Seed(DAY, 0, MONTH, 0, 0))
Open = Callable[[], Any]


async def flush(store: RedisStore) -> None:
    """Empty the server, or every node of the cluster."""
    await store._link.run(lambda client: client.flushall())


def key(limits: Limits = Limits(), *, tenant: Limits = Limits(), number: int = 9, of: int = 7) -> Key:  # noqa: B008  # frozen
    return Key(number, f"nz_{number:09d}", "hash", Tenant(of, f"tenant-{of}", limits=tenant), limits=limits)


def plan(number: object, of: Key, **fields: Any) -> Plan:
    return Plan(
        **{
            "request_id": f"request-{number}", "started_at": NOW * 1000, "mode": Mode.RESERVE, "key": of,
            "endpoint": "/api/chat", "model": "m", "address": "192.0.2.1", "cap": 10, "explicit": True, **fields,
        }
    )  # fmt: skip


async def admit(store: RedisStore, asked: Plan, known: Known = NOTHING) -> Tally:
    tally = await store.admit(asked) or await store.admit(asked, known)
    assert tally is not None
    return tally


def grant(asked: Plan, tally: Tally) -> Grant:
    return Grant(
        asked.request_id, asked.started_at, Duty.METER, asked.endpoint, asked.model, False, asked.key.tenant.id,
        asked.key.tenant.name, asked.key.id, asked.key.prefix, tally.epoch, tally.prompt_tokens, tally.cap,
    )  # fmt: skip


def used(prompt: int | None, completion: int) -> Settlement:
    return Settlement(prompt, completion, exact=prompt is not None)
