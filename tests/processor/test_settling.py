"""`processor/settling.py`: a settlement is made, sooner or later, and an observer hears when."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policy.rules.faults import StoreDown
from policy.rules.grant import Duty, Grant
from policy.rules.settlement import Settlement
from processor.settling import Settling

if TYPE_CHECKING:
    from collections.abc import Iterable

GRANT = Grant("id", 0, Duty.METER, "/api/chat", "llama3.1:8b", True, 1, "acme", 1, "nz_aaaaaaaaa", "epoch", 0, 0)
USED = Settlement(6, 7, exact=True)


@dataclass
class Counters:
    """Down for the first `down` calls."""

    down: int = 0
    calls: int = 0
    taken: list[Settlement] = field(default_factory=list)

    async def settle(self, grant: Grant, settlement: Settlement) -> str:
        self.calls += 1
        if self.calls <= self.down:
            raise StoreDown("not now")
        self.taken.append(settlement)
        return "settled"

    async def renew(self, tenant_shard: int, progress: Iterable[tuple[str, int]]) -> None:
        raise AssertionError("nothing is open")

    def shard_of(self, tenant_id: int | None, address: str) -> int:
        return 0


@dataclass
class Heard:
    said: list[str] = field(default_factory=list)

    def __call__(self, seconds: float, *, failed: str = "") -> None:
        assert seconds >= 0
        self.said.append(failed)


def test_a_store_that_answers_takes_it_at_once() -> None:
    counters, heard = Counters(), Heard()
    assert asyncio.run(Settling(counters, patience=5, observe=heard).settle(GRANT, USED))
    assert counters.taken == [USED]
    assert heard.said == [""]


def test_a_store_that_comes_back_in_time_takes_it_while_the_client_waits() -> None:
    counters, heard = Counters(down=1), Heard()
    assert asyncio.run(Settling(counters, patience=5, observe=heard).settle(GRANT, USED))
    assert heard.said == [""]


def test_a_store_that_does_not_takes_it_later() -> None:
    counters, heard = Counters(down=2), Heard()
    settling = Settling(counters, patience=0.05, observe=heard)

    async def scenario() -> None:
        assert not await settling.settle(GRANT, USED)
        assert settling.waiting == 1
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(settling.run())
            await settling.drain()
            running.cancel()

    asyncio.run(scenario())
    assert counters.taken == [USED]
    assert heard.said == ["store_down", ""]
