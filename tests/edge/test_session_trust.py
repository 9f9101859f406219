"""How far a session is trusted: fingerprints, signatures and signs of a person."""

from __future__ import annotations

import concurrent.futures
import json
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.edge.visitors import allow, new_origin, page, refused, visit
from tests.harness import MODELS, request_id

if TYPE_CHECKING:
    from tests.harness import Gateway


@pytest.mark.parametrize(
    ("policy", "status", "flags"), [("ignore", 200, ""), ("observe", 200, "fingerprint"), ("enforce", 401, "")]
)
def test_another_fingerprint(gateway: Gateway, tenant: str, policy: str, status: int, flags: str) -> None:
    visitor = visit(gateway, tenant, "--fingerprint-policy", policy)
    assert visitor.ask().status_code == 200
    for changed in ("other", "abc ", "ABC", None):
        response = visitor.ask(fingerprint=changed)
        assert response.status_code == status
        row = gateway.audit(request_id(response))
        assert row["flags"] == flags
        assert row["reason"] == ("" if status == 200 else "session_fingerprint")
    listed = visitor.http.get("/openai/models", headers={"authorization": f"Bearer {visitor.token}"})
    assert listed.status_code == status
    bearer = {"authorization": f"Bearer {visitor.token}", "x-fingerprint": "abc"}
    assert visitor.http.get("/openai/models", headers=bearer).status_code == 200


def test_what_is_noticed_is_counted(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant)
    visitor.ask(fingerprint="another")
    metrics = httpx.get(f"{gateway.url}/metrics").text
    assert 'paddock_session_signals_total{signal="fingerprint"}' in metrics


def test_legacy_signatures_are_tolerated(gateway: Gateway, tenant: str) -> None:
    """What the published client sends, with a timestamp of another millisecond."""
    visitor = visit(gateway, tenant)
    headers = {"x-request-signature": "1qv3z9k", "x-timestamp": str(int(time.time() * 1000) - 3)}
    assert visitor.ask(headers=headers).status_code == 200
    assert visitor.ask(headers=headers).status_code == 200
    assert "signingKey" not in visitor.answer


def test_signed_requests(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant, "--signature-policy", "hmac", "--rpm", "1000")
    body = json.dumps({"model": MODELS[0], "messages": [{"role": "user", "content": "hi"}], "fingerprint": "abc"})
    raw = body.encode()
    headers = visitor.signed(raw)
    assert visitor.ask(raw=raw, headers=headers).status_code == 200
    refused(visitor.ask(raw=raw, headers=headers), 401, gateway, "signature_replayed")
    refused(visitor.ask(raw=raw), 401, gateway, "signature_missing")
    other = visitor.signed(raw)
    refused(visitor.ask(raw=raw + b" ", headers=other), 401, gateway, "signature_wrong")
    refused(visitor.ask(path="/openai/completions", raw=raw, headers=other), 401, gateway, "signature_wrong")
    assert visitor.ask(raw=raw, headers=other).status_code == 200, "what failed did not use it up"
    now = int(time.time() * 1000)
    for late in (-61_000, 61_500):
        refused(visitor.ask(raw=raw, headers=visitor.signed(raw, at=now + late)), 401, gateway, "signature_stale")
    early = visitor.signed(raw, at=now + 50_000)
    assert visitor.ask(raw=raw, headers=early).status_code == 200
    refused(visitor.ask(raw=raw, headers=early), 401, gateway, "signature_replayed")


def test_what_a_limit_refused_was_not_used(gateway: Gateway, tenant: str) -> None:
    """Nor is it remembered: a flood of signed requests past the rate leaves nothing in the store."""
    visitor = visit(gateway, tenant, "--signature-policy", "hmac", "--rpm", "1")
    raw = json.dumps({"model": MODELS[0], "messages": [{"role": "user", "content": "hi"}]}).encode()
    assert visitor.ask(raw=raw, headers=visitor.signed(raw)).status_code == 200
    for _ in range(5):
        refused(visitor.ask(raw=raw, headers=visitor.signed(raw)), 429, gateway, "rate_requests")
    assert len(list(gateway.redis().scan_iter(f"pd:*sg:{visitor.id}:*"))) == 1


def test_of_many_copies_one_passes(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant, "--signature-policy", "hmac", "--rpm", "1000", "--concurrency", "none")
    raw = json.dumps({"model": MODELS[0], "messages": [{"role": "user", "content": "once"}]}).encode()
    headers = visitor.signed(raw)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = [one.status_code for one in pool.map(lambda _: visitor.ask(raw=raw, headers=headers), range(24))]
    assert sorted(found) == [200] + [401] * 23


def test_another_sessions_signature_is_none(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant, "--signature-policy", "hmac")
    thief = visit(gateway, tenant, origin=visitor.origin, fingerprint="thief")
    raw = json.dumps({"model": MODELS[0], "messages": [{"role": "user", "content": "hi"}]}).encode()
    assert thief.ask(raw=raw, headers=thief.signed(raw)).status_code == 200
    stolen = {"authorization": f"Bearer {visitor.token}"}
    refused(thief.ask(raw=raw, headers={**thief.signed(raw), **stolen}), 401, gateway, "signature_wrong")


def test_entropy_where_a_policy_asks_for_it(gateway: Gateway, tenant: str) -> None:
    origin = new_origin()
    allow(gateway, tenant, origin, "--entropy-policy", "require")
    http = page(gateway, origin)
    for poor in (None, {}, {"mouse": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]}, "x" * 500):
        refused(
            http.post("/session", json={"fingerprint": "x" * 500, "entropyData": poor}), 400, gateway, "session_entropy"
        )
    rich = {"samples": [["pointermove", n, n * 3, n * 7] for n in range(8)]}
    assert http.post("/session", json={"fingerprint": "x", "entropyData": rich}).status_code == 200
