"""Pages in visitors' browsers, for tests of sessions: an origin that a tenant allows, and a session opened from it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from policy.rules.request_signature import sign
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
        eventually(lambda: http.options("/session", headers=asks).status_code == 204, patience=15)
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


def listed(gateway: Gateway, tenant: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.paddock("list-sessions", tenant)["sessions"]
    return found


def becomes(status: int, ask: Callable[[], httpx.Response], *, patience: float = 30.0) -> httpx.Response:
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
