"""What a session may spend, alone and with all that share its fingerprint, its address or its tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.edge.visitors import CHAT, becomes, listed, refused, visit
from tests.harness import MODELS, eventually, request_id

if TYPE_CHECKING:
    from tests.harness import Gateway


def test_a_session_has_a_budget(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant, "--budget-total", "60")
    first = visitor.ask("one two three four five")
    assert first.headers["x-budget-period"] == "total"
    assert first.headers["x-budget-tokens-remaining"] == "60"
    response = becomes(429, lambda: visitor.ask("one two three four five"))
    refused(response, 429, gateway, "budget_total")
    assert response.json()["error"]["type"] == "budget_exceeded"
    assert int(response.headers["retry-after"]) >= 1
    assert response.headers["access-control-allow-origin"] == visitor.origin
    assert visit(gateway, tenant, origin=visitor.origin).ask("one").status_code == 200, "another session has its own"


@pytest.mark.parametrize(
    ("option", "same_session", "same_fingerprint"),
    [("--rpm", True, True), ("--fingerprint-rpm", False, True), ("--address-rpm", False, False),
     ("--all-rpm", False, False)],
)  # fmt: skip
def test_every_scope_binds(
    gateway: Gateway, tenant: str, option: str, same_session: bool, same_fingerprint: bool
) -> None:
    """Each limit holds for all that share its scope, and for nobody else."""
    visitor = visit(gateway, tenant, option, "3", "--opened-per-minute", "100")
    sibling = visit(gateway, tenant, origin=visitor.origin)
    stranger = visit(gateway, tenant, origin=visitor.origin, fingerprint="stranger")
    for _ in range(3):
        assert visitor.ask().status_code == 200
    limited = visitor.ask()
    refused(limited, 429, gateway, "rate_requests")
    assert 1 <= int(limited.headers["retry-after"]) <= 60
    assert sibling.ask().status_code == (200 if same_session else 429)
    assert stranger.ask().status_code == (200 if same_session or same_fingerprint else 429)


def test_the_tenants_own_limits_hold_too(gateway: Gateway) -> None:
    tenant = gateway.tenant("--rpm", "2")
    visitor = visit(gateway, tenant)
    client = gateway.client(tenant)
    assert visitor.ask().status_code == 200
    assert client.chat("hi").status_code == 200
    refused(visitor.ask(), 429, gateway, "rate_requests")
    assert client.chat("hi").status_code == 429


def test_tokens_under_way_count_in_every_scope(gateway: Gateway, tenant: str) -> None:
    """A request is admitted where all of it fits; what it did not use comes back to each scope."""
    visitor = visit(gateway, tenant, "--concurrency", "1", "--fingerprint-concurrency", "1")
    body = {"model": MODELS[0], "messages": [{"role": "user", "content": "x !tokens=200 !delay=25"}], "stream": True}
    bearer = {"authorization": f"Bearer {visitor.token}"}
    with visitor.http.stream("POST", CHAT, json=body, headers=bearer) as response:
        lines = response.iter_lines()  # dropped, it would end the answer
        next(lines)
        refused(visitor.ask(), 429, gateway, "concurrency")
    assert eventually(lambda: visitor.ask().status_code == 200)
    live = eventually(lambda: [one for one in listed(gateway, tenant) if one["under_way"] == 0])
    assert live[0]["reserved_tokens"] == 0


def test_sessions_are_seen(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant)
    response = visitor.ask()
    gateway.audit(request_id(response))
    (one,) = listed(gateway, tenant)
    assert (one["session"], one["origin"], one["address"]) == (visitor.id, visitor.origin, "127.0.0.1")
    assert (one["requests"], one["tokens"], one["under_way"]) == (1, 5, 0)
    used = gateway.paddock("usage", "--tenant", tenant, "--by", "key")
    assert [(row["key_prefix"], row["total_tokens"]) for row in used["rows"]] == [("sessions", 5)]
    rows = gateway.paddock("audit", "--key", visitor.id)
    assert {row["endpoint"] for row in rows} == {"/session", CHAT}
