"""What Envoy's meter says of an answer, read as input: a settlement, or ValueError and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.rules.metering import reading

WHOLE = {
    "st": 200, "p": 12, "c": 34, "x": True, "outcome": "completed", "ttft": 56, "load": 1, "prompt": 2, "eval": 3,
}  # fmt: skip


def said(**changes: Any) -> str:
    return json.dumps({name: value for name, value in {**WHOLE, **changes}.items() if value is not ...})


def test_a_whole_reading() -> None:
    settlement = reading(said())
    assert (settlement.prompt_tokens, settlement.completion_tokens, settlement.exact) == (12, 34, True)
    assert settlement.event == {"st": 200, "outcome": "completed", "load": 1, "prompt": 2, "eval": 3, "ttft": 56}


@pytest.mark.parametrize("prompt", [..., None])
def test_a_prompt_that_nobody_counted_is_as_estimated_and_never_exact(prompt: Any) -> None:
    settlement = reading(said(p=prompt))
    assert (settlement.prompt_tokens, settlement.exact) == (None, False)


def test_lua_has_no_integers() -> None:
    settlement = reading('{"st":200.0,"p":12.0,"c":3.4e1,"x":true,"outcome":"cut"}')
    assert (settlement.prompt_tokens, settlement.completion_tokens) == (12, 34)
    assert settlement.event == {"st": 200, "outcome": "cut"}
    assert type(settlement.completion_tokens) is int


def test_no_status_is_none() -> None:
    assert reading(said(st=0)).event["st"] is None


def test_the_longest_reading_fits_a_line_of_the_log() -> None:
    """`policy.rules.access_line` takes 200 characters of it."""
    most = 2**53
    text = json.dumps(
        {**WHOLE, "st": 200, "p": most, "c": most, "x": False, "outcome": "upstream_error"}
        | dict.fromkeys(("ttft", "load", "prompt", "eval"), most),
        separators=(",", ":"),
    )
    assert len(text) <= 200
    assert reading(text).prompt_tokens == most


HOSTILE = [
    "", "{}", "[]", "null", "12", '"text"', "{", "\ud800", b"\xff\xfe", b'{"c":\xff}', "[" * 100_000, '{"c":' * 100_000,
    said(c=...), said(x=...), said(st=...), said(outcome=...),
    said(c=-1), said(c=1.5), said(c="34"), said(c=True), said(c=None), said(c=[34]), said(c=2**53 + 1), said(c=1e300),
    said(c=float("inf")), said(c=float("nan")), '{"st":200,"p":1,"c":' + "9" * 5000 + ',"x":true,"outcome":"cut"}',
    said(p=-1), said(p="12"), said(p=False), said(p={}), said(p=2**64),
    said(x=1), said(x="true"), said(x=None),
    said(outcome="free"), said(outcome=None), said(outcome=[]), said(outcome={}), said(outcome="lost"),
    said(st=-200), said(st="200"), said(st=None),
    said(ttft=-1), said(load=0.5), said(prompt="2"), said(eval=None), said(eval=2**53 + 2),
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_anything_else_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"^"):
        reading(text)


def test_what_is_not_named_is_not_taken_over() -> None:
    assert reading(said(id="other", tn="other", s="1", reason="free")) == reading(said())


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # of loaded machines
@given(
    st.dictionaries(
        st.sampled_from([*WHOLE, "more"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.integers()),
    )
)
def test_no_reading_raises_anything_but_value_error(fields: dict[str, Any]) -> None:
    try:
        settlement = reading(json.dumps({**WHOLE, **fields}))
    except ValueError:
        return
    assert 0 <= settlement.completion_tokens <= 2**53
    assert settlement.prompt_tokens is None or 0 <= settlement.prompt_tokens <= 2**53
