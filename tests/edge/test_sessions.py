"""Browser sessions through the front door: opened, used, bounded, refused and taken back."""

from __future__ import annotations

import concurrent.futures
import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from policy.rules.request_signature import sign
from policy.rules.session_token import KeySet, Secret, SigningKey, verify
from policy.rules.session_token import sign as sign_token
from tests.harness import MODELS, eventually, request_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness import Gateway

CHAT = "/openai/chat/completions"
COUNTER = iter(range(10**6))


@dataclass
class Visitor:
    """A page of one origin that has opened a session."""

    gateway: Gateway
    http: httpx.Client
    origin: str
    tenant: str
    fingerprint: str
    answer: dict[str, Any]

    @property
    def id(self) -> str:
        found: str = self.answer["sessionId"]
        return found

    @property
    def token(self) -> str:
        found: str = self.answer["token"]
        return found

    def ask(self, text: str = "one two", *, path: str = CHAT, **changes: Any) -> httpx.Response:
        """A chat; `changes` are of the body, save `headers`, `raw` and `fingerprint`."""
        headers = {"authorization": f"Bearer {self.token}", **changes.pop("headers", {})}
        raw = changes.pop("raw", None)
        body = {"model": MODELS[0], "messages": [{"role": "user", "content": text}], "fingerprint": self.fingerprint}
        content = raw if raw is not None else json.dumps({**body, **changes}).encode()
        return self.http.post(path, content=content, headers={"content-type": "application/json", **headers})

    def signed(self, body: bytes, *, path: str = CHAT, at: int | None = None, **headers: str) -> dict[str, str]:
        """Headers of a signed request."""
        import base64

        key = base64.urlsafe_b64decode(self.answer["signingKey"] + "=")
        timestamp = str(int(time.time() * 1000) if at is None else at)
        return {"x-timestamp": timestamp, "x-request-signature": sign(key, "POST", path, timestamp, body), **headers}


@pytest.fixture
def tenant(gateway: Gateway) -> str:
    return gateway.tenant()


def new_origin() -> str:
    """An origin of one test alone: the tests of a worker share a gateway."""
    return f"https://app-{next(COUNTER)}.example"


def page(gateway: Gateway, origin: str) -> httpx.Client:
    client = gateway.http()
    client.headers["origin"] = origin
    return client


def allow(gateway: Gateway, tenant: str, origin: str, *options: str) -> dict[str, Any]:
    """Allow sessions, and return when every policy has heard of it."""
    found: dict[str, Any] = gateway.paddock("allow-sessions", tenant, "--origin", origin, *options)
    with httpx.Client(base_url=gateway.url, trust_env=False) as http:
        asks = {"origin": origin, "access-control-request-method": "POST"}
        eventually(lambda: http.options("/session", headers=asks).status_code == 204, patience=5)
    return found


def visit(
    gateway: Gateway, tenant: str, *options: str, origin: str = "", fingerprint: str = "abc", **fields: Any
) -> Visitor:
    """Allow sessions of a new origin (where none is given) and open one."""
    if not origin:
        origin = new_origin()
        allow(gateway, tenant, origin, *options)
    http = page(gateway, origin)
    response = http.post("/session", json={"fingerprint": fingerprint, **fields})
    assert response.status_code == 200, response.text
    return Visitor(gateway, http, origin, tenant, fingerprint, response.json())


def becomes(status: int, ask: Callable[[], httpx.Response], *, patience: float = 10.0) -> httpx.Response:
    """The first answer with this status."""

    def look() -> httpx.Response | None:
        response = ask()
        return response if response.status_code == status else None

    return eventually(look, patience=patience, every=0.01)


def refused(response: httpx.Response, status: int, gateway: Gateway | None = None, reason: str = "") -> None:
    """The documented JSON error; with a reason of its own in the audit row."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error", "request_id"}
    assert set(body["error"]) == {"message", "type", "code"}
    assert body["error"]["code"] == status
    assert body["request_id"] == request_id(response)
    if gateway is not None:
        row = gateway.audit(request_id(response))
        assert (row["decision"], row["reason"], row["status"]) == ("denied", reason, status)


# Off, and on.


def test_off_by_default(gateway: Gateway) -> None:
    """For an origin that nobody allowed there is nothing; the same 403 as for what never existed, save its words."""
    with gateway.http() as http:
        for method, path in (("POST", "/session"), ("POST", CHAT), ("GET", "/openai/models"), ("OPTIONS", "/session")):
            response = http.request(method, path, headers={"origin": "https://nobody.example"}, json={})
            assert response.status_code in (401, 403)
            assert "access-control-allow-origin" not in response.headers
        for method, path in (("PUT", "/session"), ("GET", CHAT), ("POST", "/openai/models"), ("POST", "/openai/audio")):
            refused(http.request(method, path), 403)


def test_a_session_chats(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant)
    assert set(visitor.answer) == {"token", "sessionId", "expiresAt", "serverTime"}
    assert abs(visitor.answer["expiresAt"] - (time.time() + 1800) * 1000) < 5000
    response = visitor.ask()
    assert response.json()["choices"][0]["message"]["content"] == "Echo: one two"
    assert response.headers["access-control-allow-origin"] == visitor.origin
    assert "x-request-id" in response.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in response.headers
    assert response.headers["x-content-type-options"] == "nosniff"
    row = gateway.audit(request_id(response))
    assert (row["tenant"], row["key_prefix"], row["endpoint"], row["flags"]) == (tenant, visitor.id, CHAT, "")
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (2, 3, False)


def test_ollama_sees_neither_fingerprint_nor_token(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant, fingerprint="a-very-special-mark")
    marker = f"look for me {visitor.id}"
    assert visitor.ask(marker, headers={"x-timestamp": "1", "x-request-signature": "1x2y"}).status_code == 200
    seen = [one for one in gateway.upstream.requests() if visitor.id in json.dumps(one)]
    assert [one["path"] for one in seen] == ["/v1/chat/completions"]
    told = json.dumps(seen)
    for secret in ("a-very-special-mark", "fingerprint", visitor.token, "authorization", "x-timestamp", "origin"):
        assert secret not in told


def test_a_session_streams(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant)
    body = {"model": MODELS[0], "messages": [{"role": "user", "content": "a b c !delay=50"}], "stream": True}
    arrivals, text = [], ""
    headers = {"authorization": f"Bearer {visitor.token}"}
    with visitor.http.stream("POST", CHAT, json=body, headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["access-control-allow-origin"] == visitor.origin
        for line in response.iter_lines():
            if line.startswith("data: {"):
                arrivals.append(time.monotonic())
                text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
    assert text == "Echo: a b c"
    assert arrivals[-1] - arrivals[0] > 0.1
    assert gateway.audit(request_id(response))["completion_tokens"] == 4


def test_the_other_endpoints(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant)
    bearer = {"authorization": f"Bearer {visitor.token}"}
    listed = visitor.http.get("/openai/models", headers=bearer)
    assert {model["id"] for model in listed.json()["data"]} == set(MODELS)
    assert listed.headers["access-control-allow-origin"] == visitor.origin
    completion = visitor.http.post("/openai/completions", json={"model": MODELS[0], "prompt": "hi"}, headers=bearer)
    assert completion.json()["choices"][0]["text"] == "Echo: hi"
    embedded = visitor.http.post("/openai/embeddings", json={"model": MODELS[2], "input": ["a"]}, headers=bearer)
    assert len(embedded.json()["data"]) == 1


# What a session may reach.


def test_no_more_than_the_policy_says(gateway: Gateway) -> None:
    tenant = gateway.tenant("--model", MODELS[0], "--model", MODELS[1])
    visitor = visit(gateway, tenant, "--model", MODELS[1], "--model", MODELS[2], "--endpoint", "chat")
    assert visitor.ask(model=MODELS[1]).status_code == 200
    refused(visitor.ask(model=MODELS[0]), 403, gateway, "model_not_available")
    refused(visitor.ask(model=MODELS[2]), 403, gateway, "model_not_available")  # the policy's, but not the tenant's
    refused(visitor.ask(path="/openai/completions", prompt="x"), 403, gateway, "endpoint_blocked")
    bearer = {"authorization": f"Bearer {visitor.token}"}
    refused(visitor.http.get("/openai/models", headers=bearer), 403, gateway, "endpoint_blocked")


@pytest.mark.parametrize(
    "path",
    ["/openai/../api/pull", "/openai/%2e%2e/api/pull", "/openai//../api/pull", "/openai/chat/../../api/delete"],
)
def test_no_path_leads_elsewhere(gateway: Gateway, tenant: str, path: str) -> None:
    visitor = visit(gateway, tenant)
    before = len(gateway.upstream.requests())
    refused(visitor.ask(path=path, model=MODELS[0]), 403)
    for other in ("/v1/chat/completions", "/api/chat", "/api/tags", "/v1/models"):
        response = visitor.ask(path=other) if "/v1/models" != other != "/api/tags" else visitor.http.get(
            other, headers={"authorization": f"Bearer {visitor.token}"}
        )  # fmt: skip
        refused(response, 401, gateway, "key_malformed")
    reached = [one for one in gateway.upstream.requests()[before:] if one["path"] not in ("/api/tags", "/api/version")]
    assert reached == []


def test_a_key_opens_no_session_path(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant)
    key = gateway.client(tenant).key
    refused(visitor.ask(headers={"authorization": f"Bearer {key}"}), 401, gateway, "session_invalid")


def test_bodies_are_judged_as_everywhere(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant, "--max-tokens", "50")
    refused(visitor.ask(raw=b'{"model":"a","MODEL":"b"}'), 400, gateway, "bad_request")
    refused(visitor.ask(fingerprint=7), 400, gateway, "bad_request")
    refused(visitor.ask(max_tokens=51), 400, gateway, "bad_request")
    refused(visitor.ask(path=f"{CHAT}?model=x"), 400, gateway, "bad_request")
    refused(visitor.ask(headers={"content-encoding": "gzip"}), 400, gateway, "bad_request")
    refused(visitor.ask("x" * 300_000), 413)


# Who is asking.


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
    assert time.monotonic() - began < 3  # a second is promised; the machine may be busy
    refused(gone, 401, gateway, "session_revoked")
    refused(by(key), 403, gateway, "session_tenant")


# Fingerprints, signatures, entropy.


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


# What a session may spend.


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


def listed(gateway: Gateway, tenant: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.paddock("list-sessions", tenant)["sessions"]
    return found


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


# Opening many.


def test_a_fingerprint_has_so_many_live_sessions(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant, "--opened-per-minute", "100", fingerprint="same")
    for _ in range(4):
        visit(gateway, tenant, origin=visitor.origin, fingerprint="same")
    response = visitor.http.post("/session", json={"fingerprint": "same"})
    refused(response, 429, gateway, "session_live")
    assert 1700 < int(response.headers["retry-after"]) <= 1800
    assert response.headers["access-control-allow-origin"] == visitor.origin
    visit(gateway, tenant, origin=visitor.origin, fingerprint="another")
    gateway.paddock("revoke-session", visitor.id)
    assert visitor.http.post("/session", json={"fingerprint": "same"}).status_code == 200, "one ended: there is room"


def test_a_tenant_has_so_many_live_sessions(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant, "--max-live", "2")
    visit(gateway, tenant, origin=visitor.origin, fingerprint="b")
    refused(visitor.http.post("/session", json={"fingerprint": "c"}), 429, gateway, "session_live_tenant")


def test_a_flood_of_openings_is_held(gateway: Gateway, tenant: str) -> None:
    """Five hundred from one address: ten sessions, no argon2, and hardly a write in PostgreSQL."""
    origin = new_origin()
    allow(gateway, tenant, origin)
    http = page(gateway, origin)
    before = verifications(gateway)
    written = transactions(gateway)

    def one(number: int) -> httpx.Response:
        return http.post("/session", json={"fingerprint": f"visitor {number}"})

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one, range(500)))
    opened = [one for one in found if one.status_code == 200]
    held = [one for one in found if one.status_code == 429]
    assert len(opened) == 10
    assert len(held) == 490
    assert all(1 <= int(one.headers["retry-after"]) <= 60 for one in held)
    assert verifications(gateway) == before
    assert transactions(gateway) - written < 250, "a write each would be five hundred; batches go with time"
    gateway.audit(request_id(opened[-1]))

    def counted() -> dict[str, int]:
        rows = gateway.sql(
            "SELECT reason, count(*) AS n FROM audit WHERE tenant = $1 AND endpoint = '/session' AND method = 'POST' "
            "GROUP BY reason", tenant,
        )  # fmt: skip
        return {row["reason"]: row["n"] for row in rows}

    eventually(lambda: counted().get("session_address_rate"))
    time.sleep(1)  # what else would come has come
    counts = counted()
    assert counts[""] == 10
    assert 1 <= counts["session_address_rate"] <= 40, (
        "twenty an address and minute have a row: the flood has two minutes"
    )
    assert len(listed(gateway, tenant)) == 10


def transactions(gateway: Gateway) -> int:
    """How many have written anything so far; reading takes no number."""
    (row,) = gateway.sql("SELECT pg_current_xact_id()::text::bigint AS number")
    found: int = row["number"]
    return found


def verifications(gateway: Gateway) -> float:
    metrics = httpx.get(f"{gateway.url}/metrics").text
    return sum(
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith("paddock_key_verifications_total{")
    )


@pytest.mark.parametrize("size", [16_385, 262_144])
def test_large_openings(gateway: Gateway, tenant: str, size: int) -> None:
    visitor = visit(gateway, tenant)
    response = visitor.http.post("/session", content=b'{"fingerprint":"a","entropyData":"' + b"x" * size + b'"}')
    assert response.status_code in (400, 413)


def test_hostile_fingerprints_are_only_text(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant, "--opened-per-minute", "100")
    for evil in (
        "}{s00}:t:1",
        "*",
        "\r\nFLUSHALL\r\n",
        "\x00",
        "sl:1",
        "é" * 512,
        '"; DROP TABLE tenant;--',
        "../../x",
    ):
        other = visit(gateway, tenant, origin=visitor.origin, fingerprint=evil)
        assert other.ask().status_code == 200
    assert visitor.ask().status_code == 200
    names = [name.decode("utf-8", "replace") for name in gateway.redis().scan_iter("pd:*s[fpl]:*")]
    assert names
    assert not [name for name in names if set(name) - set("pd:{s}0123456789lfsp-_") - set(LETTERS)]


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


# Taken back.


@pytest.mark.parametrize(
    "command",
    [
        ("revoke-session", "{id}"),
        ("revoke-session", "--tenant", "{tenant}"),
        ("disable-tenant", "{tenant}"),
        ("deny-sessions", "{tenant}"),
        ("rotate-session-key", "--at-once"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_within_a_second_it_is_over(gateway: Gateway, tenant: str, command: tuple[str, ...]) -> None:
    visit(gateway, gateway.tenant())  # or the gateway might be one without sessions afterwards
    visitor = visit(gateway, tenant)
    assert visitor.ask().status_code == 200
    gateway.paddock(*(word.format(id=visitor.id, tenant=tenant) for word in command))
    began = time.monotonic()
    response = becomes(401, visitor.ask)
    assert time.monotonic() - began < 3  # a second is promised; the machine may be busy
    refused(response, 401, gateway, "session_invalid" if "rotate" in command[0] else "session_revoked")


def test_revoked_where_the_counters_were_not_asked(gateway: Gateway, tenant: str) -> None:
    """The row in PostgreSQL alone ends a session: every policy follows it."""
    visitor = visit(gateway, tenant)
    gateway.sql(
        "INSERT INTO session_revocation (session_id, expires_at) VALUES ($1, now() + interval '1 hour')", visitor.id
    )
    began = time.monotonic()
    refused(becomes(401, visitor.ask), 401, gateway, "session_revoked")
    assert time.monotonic() - began < 3  # a second is promised; the machine may be busy


def test_forgotten_by_the_counters(gateway: Gateway, tenant: str) -> None:
    """A store that lost its data knows no session: better a new one than one without its limits."""
    visitor = visit(gateway, tenant, "--rpm", "2")
    for _ in range(2):
        assert visitor.ask().status_code == 200
    store = gateway.redis()
    store.delete(*store.scan_iter(f"pd:*s:{visitor.id}"))
    refused(visitor.ask(), 401, gateway, "session_revoked")


def test_an_origin_taken_away(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant)
    allow(gateway, tenant, new_origin())
    gateway.paddock("deny-sessions", tenant, "--origin", visitor.origin)
    refused(becomes(403, visitor.ask), 403, gateway, "session_origin")


def test_a_rotated_key_ends_nothing(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant)
    kids = gateway.paddock("rotate-session-key")
    assert kids["kid"] in kids["verifying"]
    assert len(kids["verifying"]) > 1
    time.sleep(0.5)
    assert visitor.ask().status_code == 200
    assert visit(gateway, tenant, origin=visitor.origin).ask().status_code == 200


# What the gateway serves to browsers.


def test_the_pages(gateway: Gateway, tenant: str) -> None:
    visit(gateway, tenant)
    with gateway.http() as http:
        whole = http.get("/session/client.js")
        assert whole.headers["content-type"] == "text/javascript; charset=utf-8"
        assert whole.headers["access-control-allow-origin"] == "*"
        assert whole.headers["cache-control"] == "no-cache"
        again = http.get("/session/client.js", headers={"if-none-match": whole.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert http.head("/session/client.js").headers["content-length"] == str(len(whole.content))
        for path in ("/session/", "/session/page.js", "/session/page.css"):
            response = http.get(path)
            assert response.status_code == 200
            policy = response.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'")
            assert "frame-ancestors 'none'" in policy
            assert "access-control-allow-origin" not in response.headers
        assert http.get("/session").headers["location"] == "/session/"
        for path in ("/session/../policy", "/session/index.html", "/session/%2e%2e/settings.py", "/session/client.jsx"):
            refused(http.get(path), 403)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"x-forwarded-host": "evil.example"},
        {"x-forwarded-proto": "https"},
        {"host": "evil.example"},
        {"x-original-url": "/session/"},
        {"accept": "text/html"},
        {"range": "bytes=0-10"},
        {"authorization": "Bearer x"},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_no_request_changes_what_a_cache_keeps(gateway: Gateway, tenant: str, headers: dict[str, str]) -> None:
    visit(gateway, tenant)
    with gateway.http() as http:
        plain = http.get("/session/client.js")
        for path in ("/session/client.js", "/session/client.js?cb=https://evil.example"):
            bent = http.get(path, headers=headers)
            assert bent.content == plain.content
            vary = ("date", "x-request-id", "x-envoy-upstream-service-time")
            left = [{k: v for k, v in one.headers.items() if k not in vary} for one in (plain, bent)]
            assert left[0] == left[1]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/healthz"), ("GET", "/api/version"), ("GET", "/api/tags"), ("POST", "/api/pull"), ("GET", "/nothing"),
     ("POST", "/session"), ("GET", "/readyz")],
)  # fmt: skip
def test_security_headers(gateway: Gateway, method: str, path: str) -> None:
    with gateway.http() as http:
        headers = http.request(method, path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
