"""Who asks in a session: tokens, the origins they are of, and the publishable keys that name a tenant."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from policy.rules.session_token import KeySet, Secret, SigningKey, verify
from policy.rules.session_token import sign as sign_token
from tests.edge.visitors import CHAT, Visitor, allow, becomes, new_origin, page, refused, visit
from tests.harness import MODELS, request_id

if TYPE_CHECKING:
    import httpx

    from tests.harness import Gateway


def test_without_a_token_of_ours(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant)
    bent = visitor.token[:-1] + ("A" if visitor.token[-1] != "A" else "B")
    for authorization, reason in (
        ("", "session_missing"),
        (f"Bearer {bent}", "session_invalid"),
        (f"Basic {visitor.token}", "session_invalid"),
        (f"Bearer {visitor.token}, Bearer {visitor.token}", "session_invalid"),
        ("Bearer eyJhbGciOiJub25lIn0.e30.", "session_invalid"),
    ):
        response = visitor.ask(headers={"authorization": authorization})
        refused(response, 401, gateway, reason)
        assert response.headers["access-control-allow-origin"] == visitor.origin, "the page reads that it is over"
        assert response.headers["www-authenticate"] == "Bearer"


def test_one_that_has_ended_is_told_apart(gateway: Gateway, tenant: str) -> None:
    """Its token is one of ours, made over with an earlier end: refused, and still known for whose it was."""
    visitor = visit(gateway, tenant)
    secret = Secret((gateway.data_dir / "secrets" / "session").read_text().strip().encode())
    now = int(time.time())
    rows = gateway.sql("SELECT kid, salt FROM session_key ORDER BY created_at")
    keys = KeySet.of([SigningKey.derive(secret, row["kid"], row["salt"], 0.0) for row in rows], now, 0)
    found = verify(visitor.token, keys, now)
    assert isinstance(found, tuple)
    claims, key = found
    ended = sign_token(replace(claims, issued_at=now - 1800, expires_at=now - 1), key)
    response = visitor.ask(headers={"authorization": f"Bearer {ended}"})
    refused(response, 401, gateway, "session_expired")
    row = gateway.audit(request_id(response))
    assert (row["tenant"], row["key_prefix"]) == (tenant, visitor.id)


def test_a_foreign_origin_gets_nothing(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant)
    for origin in ("https://evil.example", "null", visitor.origin + ".evil.example", visitor.origin.upper(), "*"):
        headers = {"origin": origin}
        preflight = visitor.http.options(CHAT, headers={**headers, "access-control-request-method": "POST"})
        opening = visitor.http.post("/session", json={"fingerprint": "x"}, headers=headers)
        use = visitor.ask(headers=headers)
        for response in (preflight, opening, use):
            refused(response, 403, gateway, "session_origin")
            assert "access-control-allow-origin" not in response.headers
    with gateway.http() as nobody:  # no page at all: nothing says whose it is
        refused(nobody.post("/session", json={"fingerprint": "x"}), 403, gateway, "session_origin")


def test_a_token_is_of_one_tenant_and_one_origin(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant)
    other = visit(gateway, gateway.tenant("--model", MODELS[1]))
    refused(visitor.ask(headers={"origin": other.origin}), 403, gateway, "session_origin")
    second = new_origin()
    allow(gateway, tenant, second)
    refused(visitor.ask(headers={"origin": second}), 403, gateway, "session_origin")
    assert visitor.ask().status_code == 200


def test_preflights(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant)
    for path in ("/session", CHAT, "/openai/models", "/openai/embeddings", "/openai/completions"):
        for method in ("POST", "GET"):
            asks = {"access-control-request-method": method, "access-control-request-headers": "authorization"}
            response = visitor.http.options(path, headers=asks)
            assert response.status_code == 204
            assert response.content == b""
            assert response.headers["access-control-allow-origin"] == visitor.origin
            for header in ("authorization", "content-type", "x-request-signature", "x-timestamp"):
                assert header in response.headers["access-control-allow-headers"]
            assert "origin" in response.headers["vary"]
        refused(visitor.http.options(path, headers={"access-control-request-method": "DELETE"}), 403)
        refused(visitor.http.options(path), 403)
    for path in ("/api/chat", "/v1/chat/completions", "/openai/audio", "/session/client.js"):
        assert visitor.http.options(path, headers={"access-control-request-method": "POST"}).status_code == 403


def test_publishable_keys(gateway: Gateway) -> None:
    """An origin that two tenants allow names neither; a key does, and for its tenant's origins alone."""
    origin = new_origin()
    first, second = gateway.tenant(), gateway.tenant()
    allow(gateway, first, origin)
    notes = allow(gateway, second, origin)["notes"]
    assert any("publishable key" in note for note in notes)
    http = page(gateway, origin)
    unnamed = becomes(403, lambda: http.post("/session", json={"fingerprint": "x"}))
    refused(unnamed, 403, gateway, "session_tenant")
    key = gateway.paddock("create-publishable-key", second, "--label", "site")["publishable_key"]

    def by(key: str, **headers: str) -> httpx.Response:
        return http.post("/session", json={"fingerprint": "x", "publishableKey": key}, headers=headers)

    response = becomes(200, lambda: by(key))
    assert gateway.audit(request_id(response))["tenant"] == second
    in_header = http.post("/session", json={"fingerprint": "x"}, headers={"x-publishable-key": key})
    assert in_header.status_code == 200
    refused(by(key, **{"x-publishable-key": "nzp_other"}), 400, gateway, "bad_request")
    refused(by("nzp_" + "0" * 32), 403, gateway, "session_tenant")
    refused(by(key, origin=new_origin()), 403, gateway, "session_origin")
    visitor = Visitor(gateway, http, origin, second, "x", response.json())
    assert visitor.ask().status_code == 200
    gateway.paddock("revoke-publishable-key", key)
    began = time.monotonic()
    gone = becomes(401, visitor.ask)
    assert time.monotonic() - began < 10  # a second is promised; the machine may be busy
    refused(gone, 401, gateway, "session_revoked")
    refused(by(key), 403, gateway, "session_tenant")
