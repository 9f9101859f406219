"""What is blocked and what does not exist: one 403 from Envoy alone, whatever the spelling and whoever is down."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from tests.edge.rig import Rig

BLOCKED = ["pull", "push", "create", "copy", "delete", "blobs", "ps", "status", "me", "signout", "user", "experimental"]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


def assert_forbidden(response: httpx.Response) -> None:
    assert response.status_code == 403, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "error": {"message": "forbidden", "type": "forbidden", "code": 403},
        "request_id": response.headers["x-request-id"],
    }


def assert_untouched(rig: Rig) -> None:
    assert rig.policy.checks == []
    assert rig.processor.requests == []
    assert rig.upstream.seen == []
    assert rig.pages.seen == []


@pytest.mark.parametrize("name", BLOCKED)
def test_blocked_paths_are_forbidden_whatever_the_method(rig: Rig, name: str) -> None:
    for method in METHODS:
        response = rig.client.request(method, f"/api/{name}", headers={"authorization": "Bearer nz_x"})
        if method == "HEAD":
            assert response.status_code == 403
        else:
            assert_forbidden(response)
    assert_forbidden(rig.client.post(f"/api/{name}/sha256:{'0' * 64}", content=b"x"))
    assert_untouched(rig)


@pytest.mark.parametrize(
    "target",
    [
        "/api/pull/",
        "//api/pull",
        "/api//pull",
        "/api/./pull",
        "/api/../api/pull",
        "/api/chat/../pull",
        "/v1/models/../../api/pull",
        "/api/%70ull",
        "/%61pi/pu%6c%6C",
        "/API/PULL",
        "/Api/Pull/",
        "/api/pull?x",
        "/api/pull?",
        "/api/pull;x",
        "/api/pull;/",
        "/api/x/..;/pull",
        "/api\\pull",
        "/api%2fpull",
        "/api%2Fpull",
        "/api%5cpull",
        "/api/pull%00",
        "/api/pull%20",
        "/api/pull%2f",
        "/api/pull#x",
        "/api/chat#/../pull",
        "/v1/models/..%2f..%2fapi%2fpull",
        "http://ollama:11434/api/pull",
        "http://ollama:11434//api//pull",
        "http://ollama:11434/api/chat/../pull",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_no_other_spelling_helps(rig: Rig, method: str, target: str) -> None:
    assert_forbidden(rig.ask(target, method, "content-length: 0", "authorization: Bearer nz_x"))
    assert_untouched(rig)


@pytest.mark.parametrize(
    "request_line",
    ["GET * HTTP/1.1", "GET api/pull HTTP/1.1", "GET  /api/pull HTTP/1.1", "GET /api/ pull HTTP/1.1", "POST /api/pull"],
)
def test_a_malformed_request_line_is_refused(rig: Rig, request_line: str) -> None:
    response = rig.raw(f"{request_line}\r\nhost: x\r\n\r\n".encode())
    assert response.status_code in (400, 403)
    assert_untouched(rig)


def test_http_1_0_is_refused(rig: Rig) -> None:
    for target in ("/api/pull", "/api/tags", "/healthz"):
        assert rig.raw(f"POST {target} HTTP/1.0\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode()).status_code == 400
    assert_untouched(rig)


def test_http_2_is_no_way_around(rig: Rig) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{rig.port}", http1=False, http2=True) as client:
        for path in ("/api/pull", "/api/pull/", "/API/pull", "/api/%70ull", "//api/pull", "/nothing", "/api/chat"):
            response = client.get(path)
            assert response.http_version == "HTTP/2"
            assert_forbidden(response)
    assert_untouched(rig)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/nothing"),
        ("POST", "/"),
        ("POST", "/healthz"),
        ("GET", "/api"),
        ("GET", "/api/"),
        ("GET", "/v1/"),
        ("GET", "/api/chat"),
        ("PUT", "/api/chat"),
        ("OPTIONS", "/api/chat"),
        ("POST", "/api/chat/"),
        ("POST", "/API/chat"),
        ("POST", "/api/chat2"),
        ("POST", "/x/api/chat"),
        ("POST", "/api/tags"),
        ("DELETE", "/v1/models/mistral:7b"),
        ("POST", "/v1/models/mistral:7b"),
        ("GET", "/v1/models/"),
        ("GET", "/v1/models/a;b"),
        ("POST", "/api/chat;x"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/audio/transcriptions"),
        ("GET", "/server_info"),
        ("GET", "/stats"),
        ("GET", "/debug/pprof"),
    ],
)
def test_what_has_no_route_does_not_exist(rig: Rig, method: str, target: str) -> None:
    assert_forbidden(rig.ask(target, method, "content-length: 0"))
    assert_untouched(rig)


def test_no_tunnel_and_no_upgrade(rig: Rig) -> None:
    assert_forbidden(rig.raw(b"CONNECT ollama:11434 HTTP/1.1\r\nhost: ollama:11434\r\n\r\n"))
    for target in ("/api/tags", "/api/version", "/api/pull"):
        assert_forbidden(rig.ask(target, "GET", "upgrade: websocket", "connection: upgrade"))
    assert_untouched(rig)


def test_an_upgrade_to_http_2_is_ignored(rig: Rig) -> None:
    upgrade = ("upgrade: h2c", "connection: upgrade, http2-settings", "http2-settings: AAMAAABkAARAAAAAAAIAAAAA")
    assert_forbidden(rig.ask("/api/pull", "GET", *upgrade))
    assert rig.ask("/healthz", "GET", *upgrade).status_code == 200
    assert_untouched(rig)


def test_blocking_needs_neither_service(rig: Rig) -> None:
    rig.stop("policy")
    rig.stop("processor")
    try:
        for name in BLOCKED:
            assert_forbidden(rig.client.post(f"/api/{name}", content=b"{}"))
        assert_forbidden(rig.client.get("/nothing"))
        assert rig.client.get("/healthz").json() == {"status": "ok"}
        assert rig.client.get("/").text == "Ollama is running"
    finally:
        rig.start("policy")
        rig.start("processor")


@pytest.mark.parametrize("target", ["/api/chat?model=x", "/api/chat?", "/v1/embeddings?a=b", "/api/show?;"])
def test_a_query_string_is_refused_where_a_body_rules(rig: Rig, target: str) -> None:
    response = rig.ask(target, "POST", "content-length: 0")
    assert response.status_code == 400
    assert response.json()["error"] == {"message": "bad request", "type": "bad_request", "code": 400}
    assert_untouched(rig)


def test_a_query_string_is_refused_on_a_model(rig: Rig) -> None:
    assert rig.ask("/v1/models/mistral:7b?x=1").status_code == 400
    assert_untouched(rig)


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br", "identity, gzip", "gzip, identity", "x", ""])
def test_an_encoded_body_is_refused(rig: Rig, encoding: str) -> None:
    response = rig.ask("/v1/chat/completions", "POST", f"content-encoding: {encoding}", "content-length: 0")
    assert response.status_code == 400
    assert_untouched(rig)


def test_two_encodings_are_refused_and_identity_passes(rig: Rig) -> None:
    two = rig.ask("/api/chat", "POST", "content-encoding: identity", "content-encoding: gzip", "content-length: 0")
    assert two.status_code == 400
    assert_untouched(rig)
    assert rig.ask("/api/chat", "POST", "content-encoding: Identity", "content-length: 0").status_code == 200
