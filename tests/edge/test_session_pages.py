"""What the gateway serves to browsers: the page, the client, and the headers that guard them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.edge.visitors import refused, visit

if TYPE_CHECKING:
    from tests.harness import Gateway


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
