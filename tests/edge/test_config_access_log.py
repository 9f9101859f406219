"""What policy is told of each finished request by the gRPC access log, and that nobody waits for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.edge.rig import until
from tests.edge.services import allow, deny, script

if TYPE_CHECKING:
    import httpx

    from tests.edge.rig import Rig
    from tests.edge.services import Seen


def entry(rig: Rig, response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = until(lambda: rig.policy.log_of(response.headers["x-request-id"]))
    return found


def test_an_answered_request(rig: Rig) -> None:
    rig.policy.answer = lambda _: allow(grant="{}", tenant="acme", key_prefix="nz_abcdefghi", model="mistral:7b")
    rig.processor.process = script()
    log = entry(rig, rig.client.post("/api/chat", content=b'{"a":1}'))
    common, response = log["common_properties"], log["response"]
    metadata = common["metadata"]["filter_metadata"]["envoy.filters.http.ext_authz"]
    assert {name: metadata[name] for name in ("grant", "tenant", "key_prefix", "model")} == {
        "grant": "{}", "tenant": "acme", "key_prefix": "nz_abcdefghi", "model": "mistral:7b",
    }  # fmt: skip
    assert common["downstream_remote_address"]["socket_address"]["address"] == "127.0.0.1"
    assert common["upstream_remote_address"]["socket_address"]["port_value"] == rig.ports[0]
    assert common["route_name"] == "chat"
    assert "response_flags" not in common
    assert log["request"]["request_body_bytes"] == "7"
    assert (response["response_code"], response["response_body_bytes"]) == (200, "13")
    assert response["response_code_details"] == "via_upstream"


def test_a_denial_carries_its_reason(rig: Rig) -> None:
    rig.policy.answer = lambda _: deny(401, "{}", reason="key_unknown")
    log = entry(rig, rig.client.get("/v1/models"))
    metadata = log["common_properties"]["metadata"]["filter_metadata"]["envoy.filters.http.ext_authz"]
    assert metadata["reason"] == "key_unknown"
    assert log["response"]["response_code_details"] == "ext_authz_denied"
    assert log["common_properties"]["response_flags"]["unauthorized_details"] == {"reason": "EXTERNAL_SERVICE"}


@pytest.mark.parametrize(
    ("method", "target", "status", "details"),
    [
        ("GET", "/api/pull", 403, "direct_response"),
        ("GET", "/nothing", 403, "direct_response"),
        ("POST", "/api/chat?x", 400, "direct_response"),
        ("GET", "/healthz", 200, "direct_response"),
        ("GET", "/api%2fpull", 403, "path_normalization_failed"),
        ("GET", "*", 400, "http1.invalid_url"),
    ],
)
def test_what_envoy_answers_by_itself_is_told_too(
    rig: Rig, method: str, target: str, status: int, details: str
) -> None:
    response = rig.ask(target, method, "content-length: 0")
    log = entry(rig, response)
    assert (response.status_code, log["response"]["response_code"]) == (status, status)
    assert log["response"]["response_code_details"] == details
    assert log["response"]["response_headers"] == {"x-request-id": response.headers["x-request-id"]}
    assert "metadata" not in log["common_properties"]


def test_too_large(rig: Rig) -> None:
    log = entry(rig, rig.client.post("/api/chat", content=b"x" * 300_000))
    assert log["response"]["response_code"] == 413
    assert log["response"]["response_code_details"] == "request_payload_too_large"


def test_a_client_that_hangs_up_is_told_with_its_flag(rig: Rig) -> None:
    async def silent(_: Seen, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    rig.upstream.answer = silent
    rig.processor.process = script()
    with rig.connect() as connection:
        connection.sendall(b"POST /api/chat HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        until(lambda: rig.upstream.seen)
    (log,) = until(lambda: rig.policy.logged)
    assert log["common_properties"]["response_flags"] == {"downstream_connection_termination": True}
    assert log["response"].get("response_code", 0) == 0
    assert log["request"]["request_id"] == rig.upstream.seen[0].header("x-request-id")


def test_no_header_of_the_client_is_in_it(rig: Rig) -> None:
    secret = "nz_abcdefghi0123456789"
    log = entry(rig, rig.client.get("/api/tags", headers={"authorization": f"Bearer {secret}", "cookie": secret}))
    assert secret not in str(log)


def test_traffic_does_not_wait_for_it_and_it_resumes(rig: Rig) -> None:
    rig.stop("policy")
    try:
        assert [rig.client.get("/api/pull").status_code for _ in range(20)] == [403] * 20
    finally:
        rig.start("policy")
    until(lambda: rig.policy.log_of(rig.client.get("/api/pull").headers["x-request-id"]) or rig.policy.logged)
    entry(rig, rig.client.get("/api/pull"))
