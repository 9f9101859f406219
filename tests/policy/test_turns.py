"""Turns: crowds wait for themselves."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.admission.turns import Turns

ROOMY = {"a": 1000, "b": 1000}
Lanes = st.sampled_from(["a", "b"])
Paths = st.tuples(st.sampled_from("pqr"), st.sampled_from("xyz"))


def taken(turns: Turns[str]) -> list[str]:
    return [turns.take() for _ in range(len(turns))]


def test_lanes_take_turns_at_every_level() -> None:
    turns: Turns[str] = Turns(ROOMY)
    for item in ("a1x", "a1x'", "a1x''", "a1y", "a2x", "b1x", "b1x'"):
        assert turns.put(item[0], (item[1], item[2]), item) is None
    assert taken(turns) == ["a1x", "b1x", "a2x", "b1x'", "a1y", "a1x'", "a1x''"]


def test_within_a_lane_the_first_goes_first() -> None:
    turns: Turns[str] = Turns(ROOMY)
    for item in "123":
        turns.put("a", (), item)
    assert taken(turns) == ["1", "2", "3"]


def test_nobody_waits() -> None:
    with pytest.raises(IndexError):
        Turns[str](ROOMY).take()


def test_one_behind_a_thousand_of_another_lane_is_second() -> None:
    turns: Turns[str] = Turns(ROOMY)
    for number in range(1000):
        turns.put("a", (str(number), "x"), "crowd")
    turns.put("b", ("p", "x"), "good")
    assert taken(turns)[:2] == ["crowd", "good"]


def test_a_full_room_turns_away_whoever_fills_it() -> None:
    turns: Turns[str] = Turns({"a": 3, "b": 3})
    for item in ("1", "2", "3"):
        turns.put("a", ("flood",), item)
    assert turns.put("a", ("flood",), "4") == "4"
    assert turns.put("b", ("flood",), "5") is None  # another room
    assert turns.put("a", ("quiet",), "6") == "3"  # the latest of the crowd makes room
    assert taken(turns) == ["1", "5", "6", "2"]


def test_a_crowd_of_many_addresses_under_one_prefix_is_one_crowd() -> None:
    turns: Turns[str] = Turns({"a": 4})
    for address in "1234":
        turns.put("a", ("known", address), address)
    assert turns.put("a", ("known", "5"), "5") == "5"
    assert turns.put("a", ("other", "1"), "good") == "4"
    assert sorted(taken(turns)) == ["1", "2", "3", "good"]


@given(st.lists(st.tuples(Lanes, Paths), max_size=60), st.integers(1, 8))
def test_rooms_hold_and_nobody_is_lost(arrivals: list[tuple[str, tuple[str, str]]], room: int) -> None:
    turns: Turns[int] = Turns({"a": room, "b": room})
    gone = [turns.put(lane, path, number) for number, (lane, path) in enumerate(arrivals)]
    left = [turns.take() for _ in range(len(turns))]
    assert sorted([*left, *(number for number in gone if number is not None)]) == list(range(len(arrivals)))
    for lane in "ab":
        here = sum(1 for number in left if arrivals[number][0] == lane)
        assert here == min(room, sum(1 for name, _ in arrivals if name == lane))


@given(st.lists(st.tuples(Lanes, Paths), max_size=60))
def test_order_within_a_path_is_kept_and_lanes_alternate(arrivals: list[tuple[str, tuple[str, str]]]) -> None:
    turns: Turns[int] = Turns(ROOMY)
    for number, (lane, path) in enumerate(arrivals):
        turns.put(lane, path, number)
    order = [turns.take() for _ in range(len(turns))]
    for place in set(arrivals):
        own = [number for number in order if arrivals[number] == place]
        assert own == sorted(own)
    both = 2 * min(sum(1 for name, _ in arrivals if name == lane) for lane in "ab")
    assert all(arrivals[one][0] != arrivals[two][0] for one, two in pairwise(order[:both]))
