"""/metrics through the front door of a whole gateway: what happened is in it, and nobody's key.

The page shows every process of both services. Figures are compared before and after; that a caller from elsewhere is
refused is Envoy's RBAC, which test_hygiene.py tries.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import harness
from tests.harness import eventually, request_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One of this module's own: what others left behind would be told of late, and be in the figures."""
    with harness.running(tmp_path_factory.mktemp("metrics") / "data") as running:
        yield running


class Page:
    """One scrape."""

    def __init__(self, gateway: Gateway) -> None:
        answer = gateway.http().get("/metrics")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.text = answer.text
        self._samples = [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        ]

    def sum(self, name: str, **labels: str) -> float:
        """Of all series of that name with these labels."""
        return sum(
            value
            for found, having, value in self._samples
            if found == name and all(having.get(label) == value for label, value in labels.items())
        )


def grown(gateway: Gateway, before: Page, name: str, by: float, **labels: str) -> None:
    """Wait until a figure has grown by exactly that much."""
    wanted = before.sum(name, **labels) + by
    eventually(lambda: Page(gateway).sum(name, **labels) >= wanted)
    assert Page(gateway).sum(name, **labels) == wanted


def test_requests_tokens_and_times_of_both_services(gateway: Gateway) -> None:
    client = gateway.client()
    first = client.chat("the key is proven and its counters are there")
    gateway.audit(request_id(first))  # all of it is in the ledger
    before = Page(gateway)
    answers = [client.chat(f"number {number}", stream=True) for number in range(4)]
    served = [gateway.upstream.served(request_id(answer))[0] for answer in answers]
    tenant = {"tenant": client.tenant, "model": "llama3.1:8b"}
    grown(
        gateway,
        before,
        "paddock_tokens_total",
        sum(one["prompt_tokens"] for one in served),
        **tenant,
        direction="input",
    )
    produced = sum(one["completion_tokens"] for one in served)
    grown(gateway, before, "paddock_tokens_total", produced, **tenant, direction="output")
    grown(gateway, before, "paddock_requests_total", 4, endpoint="/api/chat", decision="allow", reason="allowed")
    grown(gateway, before, "paddock_check_duration_seconds_count", 4, decision="allow")
    grown(gateway, before, "paddock_exchanges_total", 4, duty="meter", outcome="completed")
    grown(gateway, before, "paddock_settlement_duration_seconds_count", 4)
    grown(gateway, before, "gen_ai_server_time_to_first_token_seconds_count", 4, gen_ai_request_model="llama3.1:8b")
    grown(gateway, before, "paddock_output_tokens_per_second_count", 4, model="llama3.1:8b")
    # One admission is one call to the store, and one settlement another; PostgreSQL is asked for nothing.
    grown(gateway, before, "paddock_store_duration_seconds_count", 4, store="redis", operation="admit")
    grown(gateway, before, "paddock_store_duration_seconds_count", 4, store="redis", operation="settle")
    grown(gateway, before, "paddock_store_duration_seconds_count", 0, store="postgresql", operation="read_seeds")
    # Each request is in the ledger three times over: as policy, as processor and as Envoy tell it.
    grown(gateway, before, "paddock_ledger_events_total", 4, kind="admission")
    grown(gateway, before, "paddock_ledger_events_total", 4, kind="settlement")
    assert Page(gateway).sum("paddock_metric_faults_total") == 0


def test_tokens_of_an_answer_that_its_client_left_are_counted_too(gateway: Gateway) -> None:
    """No processor hears of its end: Envoy's log tells, and policy settles."""
    client = gateway.client()
    body = {"model": "llama3.1:8b", "messages": [{"role": "user", "content": "a !tokens=500 !delay=20"}]}
    before = Page(gateway)
    with client.http.stream("POST", "/api/chat", json=body) as answer:
        pieces = answer.iter_lines()
        for _ in range(5):
            next(pieces)
    row = gateway.audit(request_id(answer))
    assert (row["outcome"], row["estimated"]) == ("aborted", True)
    tenant = {"tenant": client.tenant, "model": "llama3.1:8b"}
    grown(gateway, before, "paddock_tokens_total", row["prompt_tokens"], **tenant, direction="input")
    grown(gateway, before, "paddock_tokens_total", row["completion_tokens"], **tenant, direction="output")
    grown(gateway, before, "paddock_exchanges_total", 1, duty="meter", outcome="aborted")
    grown(gateway, before, "paddock_settlements_total", 1, known="estimated")


def test_refusals_by_reason_whoever_made_them(gateway: Gateway) -> None:
    client = gateway.client()
    before = Page(gateway)
    assert client.chat("hello", model="absent:1b").status_code == 403
    assert client.http.post("/api/pull", json={"model": "x"}).status_code == 403
    assert client.http.post("/api/chat", content=b" " * 300_000).status_code == 413
    assert gateway.http("nz_not_a_key").get("/api/tags").status_code == 401
    grown(gateway, before, "paddock_requests_total", 1, decision="deny", reason="model_not_available")
    grown(gateway, before, "paddock_requests_total", 1, decision="deny", reason="key_malformed")
    grown(gateway, before, "paddock_edge_refusals_total", 1, reason="endpoint_blocked")
    grown(gateway, before, "paddock_edge_refusals_total", 1, reason="too_large")
    grown(gateway, before, "paddock_edge_refusals_total", 0, reason="model_not_available")


def test_a_new_key_costs_one_verification(gateway: Gateway) -> None:
    client = gateway.client()
    before = Page(gateway)
    for _ in range(3):
        assert client.http.get("/api/tags").status_code == 200
    grown(gateway, before, "paddock_key_verifications_total", 1, outcome="match")
    grown(gateway, before, "paddock_key_verification_duration_seconds_count", 1)
    assert Page(gateway).sum("paddock_key_verification_queue") == 0


def test_what_is_reserved_and_how_far_the_ledger_is(gateway: Gateway) -> None:
    client = gateway.client()
    client.chat("hello")
    body = {"model": "llama3.1:8b", "messages": [{"role": "user", "content": "a !tokens=60 !delay=100"}]}
    with client.http.stream("POST", "/api/chat", json=body) as answer:
        eventually(lambda: Page(gateway).sum("paddock_reservations_open") == 1)
        answer.read()
    eventually(lambda: Page(gateway).sum("paddock_reservations_open") == 0)
    # Each look at the page is itself an event that waits for a moment.
    eventually(lambda: Page(gateway).sum("paddock_ledger_pending_events") <= 2, every=0.5)
    assert Page(gateway).sum("paddock_ledger_lag_seconds") < 2


def test_what_is_left_of_a_budget_is_what_the_header_says(gateway: Gateway) -> None:
    client = gateway.client(gateway.tenant("--budget-day", "100000", "--budget-month", "900000"))
    client.chat("some tokens are spent on this")
    time.sleep(1.1)  # a tenant's budgets are looked at once a second
    answer = client.chat("and some on that")
    assert answer.headers["x-budget-period"] == "day"
    page = Page(gateway)
    left = page.sum("paddock_budget_tokens_remaining", tenant=client.tenant, period="day")
    assert left == int(answer.headers["x-budget-tokens-remaining"]) < 100_000
    assert page.sum("paddock_budget_tokens_limit", tenant=client.tenant, period="month") == 900_000


def test_no_key_and_no_prompt_is_in_it(gateway: Gateway) -> None:
    client = gateway.client()
    client.chat("a-very-private-word")
    page = Page(gateway)
    assert "nz_" not in page.text
    assert "private" not in page.text


def test_it_is_only_read(gateway: Gateway) -> None:
    client = gateway.http()
    head = client.head("/metrics")
    assert (head.status_code, head.content) == (200, b"")
    for method in ("POST", "PUT", "DELETE"):
        assert client.request(method, "/metrics").status_code == 403
