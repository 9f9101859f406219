"""GET /pki/public_key as policy answers it: the key, not yet, or not here."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from policy.edge.endpoints import Endpoints
from policy.edge.readiness import Readiness

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from policy.rules.decision import Deny
    from policy.rules.tenants import Key

PEM = b"-----BEGIN PUBLIC KEY-----\n"


class Nothing:
    snapshot: Any = None


def answer(server_key: Callable[[], bytes | None] | None, method: str = "GET") -> tuple[int, dict[bytes, bytes], bytes]:
    async def refuse(presented: str | None, address: str, now: datetime) -> Key | Deny:
        raise AssertionError("no key is asked for")

    app = Endpoints(
        version="1",
        catalogue=Nothing(),
        authenticate=refuse,
        readiness=Readiness({}),
        exposition=lambda: b"",
        server_key=server_key,
    )
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("there is no body")

    headers = [(b"x-request-id", b"r-1")]
    scope = {"type": "http", "method": method, "path": "/pki/public_key", "headers": headers, "query_string": b""}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_key(method: str) -> None:
    status, headers, body = answer(lambda: PEM, method)
    assert (status, body) == (200, PEM)
    assert headers[b"content-type"].startswith(b"text/plain")
    assert headers[b"cache-control"] == b"no-store"


def test_not_yet() -> None:
    status, headers, body = answer(lambda: None)
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert json.loads(body) == {
        "error": {"message": "temporarily unavailable", "type": "unavailable", "code": 503},
        "request_id": "r-1",
        "detail": "temporarily unavailable",
    }


def test_not_here() -> None:
    status, _, body = answer(None)
    assert status == 404
    assert json.loads(body)["detail"] == "secure inference is not enabled"


def test_a_fault_says_nothing() -> None:
    def broken() -> bytes:
        raise RuntimeError("/secret/path")

    status, _, body = answer(broken)
    assert status == 503
    assert b"secret" not in body
