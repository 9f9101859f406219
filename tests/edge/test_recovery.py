"""Requests that only Envoy knows of: their audit rows come from its file where its stream lost them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import harness
from tests.edge.test_metrics_page import Page, grown
from tests.harness import request_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness import Gateway


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with harness.running(tmp_path_factory.mktemp("recovery") / "data") as gateway:
        yield gateway


def test_what_envoy_refused_while_no_policy_ran(lone: Gateway) -> None:
    http = lone.http()
    before = Page(lone)
    lone.instance.kill("policy-0")
    blocked = [http.post("/api/pull") for _ in range(3)]
    failed = http.post("/api/chat", json={"model": "llama3.1:8b", "messages": []})
    assert {response.status_code for response in blocked} == {403}
    assert failed.status_code == 503
    lone.instance.restart("policy-0")
    for response in blocked:
        row = lone.audit(request_id(response), patience=20)
        assert (row["status"], row["reason"], row["endpoint"]) == (403, "endpoint_blocked", "/api/pull")
        assert row["address"] == "127.0.0.1"
    assert lone.audit(request_id(failed), patience=20)["status"] == 503
    grown(lone, before, "paddock_edge_refusals_total", 3, reason="endpoint_blocked")
    grown(lone, before, "paddock_edge_refusals_total", 1, reason="fault")


def test_an_answer_whose_end_died_with_policy(lone: Gateway) -> None:
    client = lone.client()
    response = client.chat("one two three")
    lone.instance.kill("policy-0")
    lone.instance.restart("policy-0")
    row = lone.audit(request_id(response), patience=20)
    assert (row["prompt_tokens"], row["completion_tokens"], row["status"]) == (3, 4, 200)
    assert row["tenant"] == client.tenant


def test_the_stream_and_the_file_agree_on_when_a_request_began(lone: Gateway) -> None:
    """The start is half of a row's key: a file that told another would make a second row."""
    import json
    import time

    client = lone.client()
    responses = [client.chat("x") for _ in range(20)] + [client.http.get("/healthz") for _ in range(20)]
    for response in responses:
        lone.audit(request_id(response))
    time.sleep(1)  # the file is flushed twice a second
    told = {}
    for line in (lone.data_dir / "logs" / "access.log").read_text().splitlines():
        if line.startswith("{"):
            entry = json.loads(line)
            told[entry["request_id"]] = int(entry["started_us"])
    for response in responses:
        started = lone.audit(request_id(response))["started_at"]
        assert round(started.timestamp() * 1e6) == told[request_id(response)]


def test_a_log_that_grows_is_renamed_and_no_line_is_lost(tmp_path: Path) -> None:
    """Three new files while no policy runs: each refusal of Envoy's gets its row afterwards."""
    with harness.running(tmp_path / "data", log_bytes=20_000) as gateway:
        logs = gateway.data_dir / "logs"
        http = gateway.http()
        gateway.instance.kill("policy-0")
        refused: list[str] = []
        for age in (1, 2, 3):
            refused += [request_id(http.post("/api/pull")) for _ in range(60)]  # some 700 bytes each
            harness.eventually(lambda age=age: (logs / f"access.log.{age}").exists())  # type: ignore[misc]  # of this turn
            harness.eventually((logs / "access.log").exists)
        gateway.instance.restart("policy-0")
        rows = harness.eventually(lambda: _all_there(gateway, refused), patience=60)
        assert rows == {(one, "endpoint_blocked") for one in refused}


def _all_there(gateway: Gateway, wanted: list[str]) -> set[tuple[str, str]] | None:
    rows = gateway.sql("SELECT request_id, reason FROM audit WHERE request_id = ANY ($1)", wanted)
    assert len(rows) <= len(wanted)
    return {(row["request_id"], row["reason"]) for row in rows} if len(rows) == len(wanted) else None
