"""A line of Envoy's file, where it tells of an answer that Envoy metered and nobody settled yet."""

from __future__ import annotations

import json
from typing import Any

import pytest

from policy.rules.access_line import parse
from policy.rules.grant import Duty, Grant

GRANT = Grant("r", 5, Duty.METER, "/api/chat", "m", True, 7, "acme", 9, "nz_abcdefghi", "epoch", 12, 100)
LINE = {
    "started_us": "5", "status": 200, "request_id": "r", "route": "chat", "tenant": "acme", "tenant_id": "7",
    "client": "192.0.2.1", "upstream": "192.0.2.9:11434", "duration_ms": 2500, "grant": GRANT.to_json(),
}  # fmt: skip


def line(**fields: Any) -> Any:
    found = parse(json.dumps({**LINE, **fields}).encode())
    assert found is not None
    return found


def test_what_envoy_metered_and_nobody_settled() -> None:
    found = line(meter="1", used='{"c":1}', deltas=41)
    assert (found.metered, found.settled, found.used, found.deltas) == (True, False, '{"c":1}', 41)
    assert (found.status, found.microseconds) == (200, 2_500_000)
    assert Grant.from_json(found.grant) == GRANT


@pytest.mark.parametrize("fields", [{}, {"meter": None}, {"meter": "1", "settled": "1"}])
def test_what_somebody_else_settles_or_has_settled_is_left_alone(fields: dict[str, Any]) -> None:
    found = line(**fields, used='{"c":1}')
    assert (found.metered, found.settled, found.grant) == (False, True, "")


@pytest.mark.parametrize("deltas", [None, "41", 4.5, True, [41]])
def test_deltas_that_are_no_count_are_none(deltas: Any) -> None:
    assert line(meter="1", deltas=deltas).deltas is None


@pytest.mark.parametrize("name", ["grant", "used"])
@pytest.mark.parametrize("value", [None, 7, {}, ["x"]])
def test_texts_that_are_none(name: str, value: Any) -> None:
    found = line(**{"meter": "1", name: value})
    assert getattr(found, name) == ""
    assert found.settled is (name == "grant")


def test_a_grant_that_is_too_long_is_cut_and_then_read_by_nobody() -> None:
    found = line(meter="1", grant=GRANT.to_json() + " " * 5000 + "x")
    assert len(found.grant) == 4000


UNJUDGED = {"tenant": None, "tenant_id": None, "grant": None, "upstream": None, "route": "healthz"}


def test_an_answer_for_anybody() -> None:
    assert line(**UNJUDGED).open
    assert line(**{**UNJUDGED, "upstream": "unix", "route": "version"}).open
    assert not line().open
    assert not line(**{**UNJUDGED, "recorded": "0"}).open
    assert not line(**{**UNJUDGED, "status": 403}).open


@pytest.mark.parametrize(
    ("told", "flags", "status"),
    [("7", "-", 403), ("16", "-", 401), ("13", "-", 400), ("2", "-", 400), ("14", "-", 503), ("14", "RL", 429),
     ("14", "DC,RL", 429), ("14", "RLSE", 503), ("8", "-", 429), ("12", "-", 403)],
)  # fmt: skip
def test_a_refusal_told_in_grpc(told: str, flags: str, status: int) -> None:
    found = line(**UNJUDGED, grpc_status=told, flags=flags)
    assert (found.status, found.refused, found.open) == (status, True, False)
    assert json.loads(found.event)["st"] == status


@pytest.mark.parametrize("told", [None, "0", "-", 7])
def test_what_grpc_says_of_none(told: Any) -> None:
    assert line(**UNJUDGED, grpc_status=told).status == 200


def test_what_an_upstream_says_in_grpc_is_its_own() -> None:
    assert (line(grpc_status="7").status, line(grpc_status="7").refused) == (200, False)
