"""Bounds on the shape of requests: as they are written, kept, and read again by another version."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.rules.bounds import DEFAULT, MEANINGS, USUAL, Bounds, read
from policy.rules.schema import OPERATOR_OPTIONS

figures = st.integers(1, 10**9)
bounds = st.builds(
    Bounds,
    depth=st.integers(1, 256),
    tools=figures,
    template_logic=st.booleans(),
    keep_alive_seconds=st.floats(0, 10**9),
    operator_options=st.frozensets(st.sampled_from(sorted(OPERATOR_OPTIONS))),
)


@given(bounds)
def test_what_differs_is_all_of_it(found: Bounds) -> None:
    kept = json.loads(json.dumps(found.differing()))
    assert Bounds.of(kept) == found
    assert DEFAULT.differing() == {}
    assert not {name for name in kept if getattr(found, name) == USUAL[name]}


def test_what_a_later_version_knows_is_left_out() -> None:
    kept = {"tools": 3, "colours": 7, "operator_options": ["num_ctx", "num_dreams"]}
    assert Bounds.of(kept) == Bounds(tools=3, operator_options=frozenset({"num_ctx"}))


@pytest.mark.parametrize("kept", [{"tools": "3"}, {"tools": -1}, {"tools": True}, {"depth": 257}, {"depth": 0},
                                  {"template_logic": 1}, {"operator_options": "num_ctx"}, {"stop": None}])  # fmt: skip
def test_what_cannot_be_one_is_refused(kept: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(kept))):
        Bounds.of(kept)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("tools", "1_000", 1000),
        ("tools", "0", 0),
        ("keep_alive_seconds", "1.5", 1.5),
        ("keep_alive_seconds", "90", 90.0),
        ("template_logic", "yes", True),
        ("template_logic", "False", False),
        ("operator_options", "num_ctx,num_gpu", frozenset({"num_ctx", "num_gpu"})),
        ("operator_options", "", frozenset()),
    ],
)
def test_as_an_operator_writes_them(name: str, text: str, value: object) -> None:
    assert read(name, text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [("tools", "many"), ("tools", "-1"), ("tools", "1.5"), ("tools", ""), ("tools", "1000000001"), ("depth", "257"),
     ("depth", "0"), ("keep_alive_seconds", "inf"), ("template_logic", "1"), ("operator_options", "num_predict")],
)  # fmt: skip
def test_mistakes_are_told(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=name):
        read(name, text)


def test_each_has_a_meaning() -> None:
    assert set(MEANINGS) == {field.name for field in fields(Bounds)} == set(USUAL)
