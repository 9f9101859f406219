"""Events as values: read from stream entries, sorted into batches; nothing unreadable passes."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.rules.events import LONGEST_TEXT, Event, Waiting, batch, read, unjudged_id

WHO = {"s": "1800000000123457", "t": 7, "tn": "acme", "k": 9, "kp": "nz_abcdefghi", "model": "m", "ep": "/api/chat"}
ADMITTED = {"id": "r", **WHO, "addr": "192.0.2.1", "mode": "reserve", "reason": ""}


def encoded(**fields: object) -> dict[bytes, bytes]:
    return {
        name.encode(): value.encode() if isinstance(value, str) else json.dumps(value).encode()
        for name, value in fields.items()
    }


def admission(verdict: str = "ok", **facts: Any) -> dict[bytes, bytes]:
    return encoded(k="admit", v=verdict, e={**ADMITTED, **facts})


def settlement(kind: str = "settle", used: str = "10 5 1", **facts: Any) -> dict[bytes, bytes]:
    return encoded(k=kind, d="20833", u=used, i=WHO, e={"id": "r", **facts})


@pytest.mark.parametrize(
    ("verdict", "asked", "decision", "reason"),
    [
        ("ok", "", "allowed", ""),
        ("rate_tokens", "", "denied", "rate_tokens"),
        ("ok", "model_not_available", "denied", "model_not_available"),
        ("rate_requests", "model_not_available", "denied", "rate_requests"),
    ],
)
def test_an_admission_says_what_was_decided_and_why(verdict: str, asked: str, decision: str, reason: str) -> None:
    event = read(admission(verdict, reason=asked))
    assert event.kind == "admission"
    assert (event.facts["decision"], event.facts["reason"]) == (decision, reason)
    assert event.request == ("1800000000123457", "r")


@pytest.mark.parametrize("kind", ["settle", "again"])
def test_a_settlement_says_who_and_how_much(kind: str) -> None:
    event = read(settlement(kind, st=200, outcome="completed"))
    assert event.kind == "settlement"
    assert event.facts == {
        "id": "r", **WHO, "day": 20833, "pt": 10, "ct": 5, "est": True, "st": 200, "outcome": "completed",
    }  # fmt: skip


def test_of_settlements_the_first_counts_and_of_all_else_the_last() -> None:
    events = [read(settlement(used="1 1 0")), read(settlement("again", used="9 9 0"))]
    events += [read(admission()), read(admission("rate_tokens"))]
    events += [Event("log", {"id": "r", "s": "1", "st": status}) for status in (200, 500)]
    found = batch(events)
    assert len(found) == 3
    assert [facts["pt"] for facts in found.settlements.values()] == [1]
    assert [facts["reason"] for facts in found.admissions.values()] == ["rate_tokens"]
    assert [facts["st"] for facts in found.logs.values()] == [500]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"k": b"other"},
        {b"k": b"admit"},
        {b"k": b"admit", b"v": b"ok", b"e": b"{"},
        {b"k": b"admit", b"v": b"ok", b"e": b"null"},
        {b"k": b"admit", b"v": b"\xff", b"e": b"{}"},
        admission(id=""),
        admission(id=None),
        admission(s="later"),
        admission(s=5),
        admission(s="-5"),
        admission(s="٣"),
        admission(s="1" * 17),
        settlement(used="1 1"),
        settlement(used="a b c"),
        {**settlement(), b"d": b"today"},
        {**settlement(), b"i": b"{}"},
        {**settlement(), b"i": b"[]"},
    ],
)
def test_what_is_no_event_is_told(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(fields)


@given(text=st.text(st.characters(exclude_categories=())), raw=st.binary(max_size=30))
def test_texts_are_such_as_postgresql_takes(text: str, raw: bytes) -> None:
    escaped = read(admission(ep=text)).facts["ep"]
    assert "\0" not in escaped
    assert len(escaped.encode()) <= 4 * LONGEST_TEXT
    if text.isprintable() and len(text) <= LONGEST_TEXT:
        assert escaped == text
    fields = admission(ep="@")
    fields[b"e"] = fields[b"e"].replace(b"@", raw)
    try:
        read(fields).facts["ep"].encode()
    except ValueError:
        pass  # it was no JSON any more


@given(fields=st.dictionaries(st.sampled_from([b"k", b"v", b"d", b"u", b"i", b"e"]), st.binary(max_size=50)))
def test_nothing_but_a_value_error_comes_of_garbage(fields: dict[bytes, bytes]) -> None:
    try:
        read(fields)
    except ValueError:
        pass


def test_a_batch_knows_its_last_event() -> None:
    assert Waiting(1, "e", ((b"1-0", {}), (b"2-5", {}))).last == "2-5"


@pytest.mark.parametrize("text", ["", "x", "a b", "5C4B1A5E-0000-4000-8000-000000000000", "é" * 9000])
def test_no_client_names_a_request_that_policy_never_saw(text: str) -> None:
    ours = "5c4b1a5e-0000-4000-8000-000000000000"
    assert unjudged_id(ours) == ours
    assert unjudged_id(text) == unjudged_id(text) != text
    assert str(UUID(unjudged_id(text))) == unjudged_id(text)
