"""Callers that say they speak gRPC. To them Envoy tells refusals of its own under status 200, the error beside it: to
the books, and wherever a request was admitted first, they are what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests import harness
from tests.harness import MODELS, eventually

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from tests.harness import Client, Gateway

GRPC = {"content-type": "application/grpc"}
CHAT = {"model": MODELS[0], "stream": False, "messages": [{"role": "user", "content": "one two"}]}


def row(gateway: Gateway, response: httpx.Response) -> dict[str, Any]:
    """The row of a request that may have come to nobody who judges: such a one has an id of its own."""
    like = response.headers["x-request-id"]

    def look() -> dict[str, Any] | None:
        found = gateway.sql("SELECT * FROM audit WHERE request_id = $1 AND duration_us IS NOT NULL", like)
        return found[0] if found else None

    return eventually(look)


@pytest.mark.parametrize(
    ("path", "told", "status", "reason"),
    [
        ("/api/pull", "7", 403, "endpoint_blocked"),
        ("/nothing", "7", 403, "endpoint_blocked"),
        ("/api/chat?x", "13", 400, "bad_request"),
        ("/api/chat", "16", 401, "key_missing"),
        ("/session", "7", 403, "session_origin"),
    ],
)
def test_a_refusal_is_one_in_the_books(gateway: Gateway, path: str, told: str, status: int, reason: str) -> None:
    gateway.paddock("allow-sessions", gateway.tenant(), "--origin", "https://grpc.example")
    http = gateway.http()
    if path == "/session":
        eventually(lambda: "origin" in http.post(path, headers=GRPC).headers["grpc-message"])
    response = http.post(path, content=b"{}", headers=GRPC)
    assert (response.status_code, response.headers["grpc-status"]) == (200, told)
    assert f'"code":{status}' in response.headers["grpc-message"]
    found = row(gateway, response)
    assert (found["decision"], found["reason"], found["status"]) == ("denied", reason, status)


def test_an_answer_is_an_answer(gateway: Gateway) -> None:
    response = gateway.client().http.post("/api/chat", json=CHAT, headers=GRPC)
    assert (response.status_code, response.json()["message"]["content"]) == (200, "Echo: one two")


@pytest.mark.parametrize("metering", ["envoy", "processor"])
def test_admitted_and_not_answered(tmp_path: Path, metering: str) -> None:
    """By an upstream that is gone, and, where Envoy meters, by a processor that is: an error, and nothing charged."""
    with harness.running(tmp_path / "data", metering=metering, PADDOCK_DISCOVERY_INTERVAL_SECONDS="3600") as gateway:
        client = gateway.client()
        assert client.http.post("/api/chat", json=CHAT).status_code == 200
        gateway.upstream.stop()
        charged(gateway, client, 502)
        if metering == "envoy":
            gateway.instance.kill("processor-0")
            charged(gateway, client, 503)


def charged(gateway: Gateway, client: Client, status: int) -> None:
    response = client.http.post("/api/chat", json=CHAT, headers=GRPC)
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == status
    found = gateway.audit(response.headers["x-request-id"])
    assert (found["status"], found["prompt_tokens"], found["completion_tokens"]) == (status, 0, 0)
