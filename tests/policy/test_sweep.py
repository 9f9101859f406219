"""The sweeper: what an answer is charged whose Envoy died, or whom nobody saw to its end."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from policy.admission import ledger as books
from policy.admission.ledger import Ledger
from policy.rules.settlement import Expired, Identity
from policy.rules.speeds import FIRST_GUESS, Speeds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policy.rules.settlement import Settlement

START = 1_800_000_000_000_000
SECOND = 1_000_000


def forgotten(seen: int, cap: int = 1000, *, after: float = 0.0, request_id: str = "r") -> Expired:
    """A reservation whose answer had come to `seen` tokens, and was heard of last `after` seconds from its start."""
    who = Identity(START, 7, "acme", 9, "nz_abcdefghi", "m", "/api/chat")
    return Expired(request_id, who, seen, cap, START + round(after * SECOND))


@dataclass
class Events:
    expired_ones: list[Expired]
    settled: dict[str, Settlement] = field(default_factory=dict)

    async def overdue(self) -> list[int]:
        return [0]

    async def expired(self, shard: int) -> list[Expired]:
        return self.expired_ones

    async def settle_as(self, request_id: str, identity: Identity, settlement: Settlement) -> str:
        self.settled[request_id] = settlement
        return "settled"


@dataclass
class Rows:
    unsent: frozenset[str] = frozenset()

    async def never_forwarded(self, requests: Sequence[tuple[str, int]]) -> frozenset[str]:
        return self.unsent


def swept(*ones: Expired, speeds: Speeds | None = None, unsent: frozenset[str] = frozenset()) -> dict[str, Settlement]:
    events: Any = Events(list(ones))
    rows: Any = Rows(unsent)
    asyncio.run(Ledger(events, rows, retention_days=1, speeds=speeds).sweep())
    found: dict[str, Settlement] = events.settled
    return found


def charged(one: Expired, speeds: Speeds | None = None) -> int:
    (settlement,) = swept(one, speeds=speeds).values()
    assert (settlement.prompt_tokens, settlement.exact, settlement.event) == (None, False, {"outcome": "lost"})
    return settlement.completion_tokens


def learned() -> Speeds:
    speeds = Speeds()
    speeds.learn("m", 100, 1_000_000_000)
    return speeds


def test_what_was_seen_and_half_of_what_comes_between_two_signs() -> None:
    assert charged(forgotten(40, after=3), learned()) == 40 + 50


def test_a_model_of_which_nothing_is_known_is_a_middling_one() -> None:
    assert charged(forgotten(40, after=3)) == 40 + FIRST_GUESS / 2


def test_where_nothing_was_seen_the_time_that_there_were_signs_counts() -> None:
    """A document, or a model that loads: no piece of it shows how far it came."""
    assert charged(forgotten(0, after=3), learned()) == 300


@pytest.mark.parametrize(("seen", "cap", "all_told"), [(40, 60, 60), (0, 60, 60), (70, 60, 70), (0, 0, 0)])
def test_never_more_than_was_reserved_but_for_what_was_seen(seen: int, cap: int, all_told: int) -> None:
    assert charged(forgotten(seen, cap, after=3), learned()) == all_told


def test_clocks_that_differ_charge_nothing_backwards() -> None:
    assert charged(forgotten(0, after=-5), learned()) == 0


def test_what_never_went_on_costs_nothing_and_the_others_do() -> None:
    found = swept(forgotten(0, after=3, request_id="a"), forgotten(5, after=3, request_id="b"), unsent=frozenset("a"))
    assert (found["a"].prompt_tokens, found["a"].completion_tokens, found["a"].exact) == (0, 0, True)
    assert found["a"].event == {"outcome": "not_forwarded"}
    assert found["b"].completion_tokens == 15


def test_a_new_policy_lets_running_answers_renew_their_leases_first() -> None:
    """Its Envoys' log streams come back before it sweeps what stood still while no policy ran."""
    events: Any = Events([])
    rows: Any = Rows()
    before = time.monotonic()
    assert Ledger(events, rows, retention_days=1)._swept >= before + books.RENEWED_SECONDS
