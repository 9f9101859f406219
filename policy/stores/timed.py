"""Stores whose calls are timed: the same calls, and an observer that hears how long each took and whether it failed.

Only what a request or the ledger waits for is timed; the rest is passed through as it is.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from policy.rules.faults import DatabaseDown, StoreDown

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from policy.stores.ledger_postgres import LedgerTables
    from policy.stores.postgres import Postgres
    from policy.stores.redis import RedisStore

P = ParamSpec("P")
T = TypeVar("T")


class Observe(Protocol):
    """Hears of a call's end; `seconds` is what it took. It must not raise."""

    def __call__(self, store: str, operation: str, seconds: float, *, failed: bool = False) -> None: ...


def timed(
    observe: Observe, store: str, operation: str, call: Callable[P, Coroutine[Any, Any, T]]
) -> Callable[P, Coroutine[Any, Any, T]]:
    """`call`, observed. A call that is cancelled has neither succeeded nor failed and is not."""

    async def observed(*args: P.args, **kwargs: P.kwargs) -> T:
        begun = perf_counter()
        try:
            result = await call(*args, **kwargs)
        except (StoreDown, DatabaseDown):
            observe(store, operation, perf_counter() - begun, failed=True)
            raise
        observe(store, operation, perf_counter() - begun)
        return result

    return observed


class TimedCounters:
    """A RedisStore."""

    def __init__(self, store: RedisStore, observe: Observe) -> None:
        self.admit = timed(observe, "redis", "admit", store.admit)
        self.settle = timed(observe, "redis", "settle", store.settle)
        self.settle_as = timed(observe, "redis", "settle_as", store.settle_as)
        self.renew = timed(observe, "redis", "renew", store.renew)
        self.log = timed(observe, "redis", "log", store.log)
        self.overdue = timed(observe, "redis", "overdue", store.overdue)
        self.expired = timed(observe, "redis", "expired", store.expired)
        self.events = timed(observe, "redis", "events", store.events)
        self.forget = timed(observe, "redis", "forget", store.forget)
        self.backlog = timed(observe, "redis", "backlog", store.backlog)
        self.standing = timed(observe, "redis", "standing", store.standing)
        self.refusals = store.refusals
        self.forget_refusals = store.forget_refusals
        self.shard_of = store.shard_of
        self.ping = store.ping


class TimedKeys:
    """The keys of a Postgres."""

    def __init__(self, store: Postgres, observe: Observe) -> None:
        self.load = timed(observe, "postgresql", "load_keys", store.load)
        self.stamp = timed(observe, "postgresql", "stamp_keys", store.stamp)
        self.watch = store.watch


class TimedRows:
    """The ledger's tables."""

    def __init__(self, tables: LedgerTables, observe: Observe) -> None:
        self.apply = timed(observe, "postgresql", "apply_events", tables.apply)
        self.count_refusals = timed(observe, "postgresql", "count_refusals", tables.count_refusals)
        self.arrange = timed(observe, "postgresql", "arrange", tables.arrange)
        self.never_forwarded = timed(observe, "postgresql", "never_forwarded", tables.never_forwarded)
        self.quarantine = tables.quarantine
        self.advance = tables.advance
        self.writing = tables.writing
        self.lead = tables.lead
