"""A ledger that leads over a real PostgreSQL and a real Valkey, for tests: requests served, and what was written."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from policy.admission.ledger import Ledger
from policy.rules.events import Entry
from policy.rules.grant import Duty, Grant
from policy.rules.judgement import Mode, Plan
from policy.rules.limits import Limits
from policy.rules.settlement import Known, Seed, Settlement
from policy.rules.tenants import Key, Tenant
from policy.stores.ledger_postgres import LedgerTables
from policy.stores.redis import RedisStore, open_store
from tests.postgresql import execute

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from policy.rules.judgement import Tally
    from tests.stores.cluster import Valkey

DAY = 1_800_000_000 // 86400
START = 1_800_000_000_123_457
TENANT = Tenant(7, "acme", limits=Limits(budget_day=10**6))
KEY = Key(9, "nz_abcdefghi", "hash", TENANT)
NOTHING = Known(Seed(DAY, 0, 0, 0, 0), Seed(DAY, 0, 0, 0, 0))
LOG = {
    "t": 7, "tn": "acme", "kp": "nz_abcdefghi", "model": "llama3.1:8b", "ep": "/api/chat", "method": "POST",
    "addr": "192.0.2.1", "st": 200, "reason": "", "nf": False, "flags": "", "in": 100, "out": 200, "us": 3000,
    "up_us": 1000,
}  # fmt: skip


@asynccontextmanager
async def books(database: str, valkey: Valkey) -> AsyncIterator[tuple[Ledger, RedisStore, LedgerTables]]:
    """An empty counter store, and a ledger that leads."""
    store = await open_store(valkey.url, epoch="test", seconds=30)
    tables = LedgerTables(database)
    try:
        await store.ask("FLUSHALL")
        ledger = Ledger(store, tables, retention_days=400)
        assert await tables.lead()
        yield ledger, store, tables
    finally:
        await tables.close()
        await store.close()


def plan(number: int, **fields: Any) -> Plan:
    return Plan(
        **{
            "request_id": f"request-{number}", "started_at": START + number, "mode": Mode.RESERVE, "key": KEY,
            "endpoint": "/api/chat", "model": "llama3.1:8b", "address": "192.0.2.1", "prompt_bytes": 100, "cap": 50,
            **fields,
        }
    )  # fmt: skip


def grant(of: Plan, tally: Tally) -> Grant:
    return Grant(
        of.request_id, of.started_at, Duty.METER, of.endpoint, of.model, True, of.key.tenant.id, of.key.tenant.name,
        of.key.id, of.key.prefix, tally.epoch, tally.prompt_tokens, tally.cap,
    )  # fmt: skip


async def served(store: RedisStore, number: int, prompt: int = 10, completion: int = 5) -> Grant:
    """One request from admission to log."""
    asked = plan(number)
    tally = await store.admit(asked, NOTHING)
    assert tally is not None and tally.refused is None
    given = grant(asked, tally)
    await store.settle(given, Settlement(prompt, completion, exact=True, event={"st": 200, "outcome": "completed"}))
    await store.log(7, [entry({**LOG, "id": asked.request_id, "s": str(asked.started_at)})])
    return given


def entry(event: dict[str, Any], *, refused: bool = False) -> Entry:
    """What the journal makes of a line of Envoy's log."""
    return Entry(event["addr"], refused, f"{event['id']} {event['s']}", json.dumps(event))


async def carry(ledger: Ledger) -> None:
    while await ledger.carry():
        pass


async def audit(database: str) -> list[dict[str, Any]]:
    return [dict(row) for row in await execute(database, "SELECT * FROM audit ORDER BY started_at, request_id")]


async def usage(database: str) -> list[tuple[Any, ...]]:
    rows = await execute(database, "SELECT * FROM usage_daily ORDER BY day, tenant_id, key_id, model")
    return [tuple(row) for row in rows]


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not await true():  # noqa: ASYNC110  # another program's state has no event of ours
            await asyncio.sleep(0.02)
