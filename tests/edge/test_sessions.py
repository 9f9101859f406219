"""Browser sessions through the front door: off until a tenant allows them, opened, used, and what they reach."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.edge.visitors import CHAT, refused, visit
from tests.harness import MODELS, request_id

if TYPE_CHECKING:
    from tests.harness import Gateway


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
