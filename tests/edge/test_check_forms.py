"""The two ways in which Envoy asks policy, over HTTP as shipped and over gRPC as in a mesh, are one to everybody else:
policy sees the same request, clients get the same bytes, the logs the same metadata."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.edge import rig as rigs
from tests.edge.rig import until
from tests.edge.services import allow, deny, header, reply, script

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    import httpx

    from tests.edge.rig import Rig
    from tests.edge.services import Message, Seen

AUTHZ = "envoy.filters.http.ext_authz"
ELSEWHERE = "127.0.0.2"  # an address of this host that is not the usual one


@pytest.fixture(scope="module", params=[False, True], ids=["http", "grpc"])
def module_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with rigs.running(grpc_checks=request.param) as running:
        yield running


def metadata(rig: Rig, response: httpx.Response) -> dict[str, Any]:
    log = until(lambda: rig.policy.log_of(response.headers["x-request-id"]))
    found: dict[str, Any] = dict(log["common_properties"]["metadata"]["filter_metadata"][AUTHZ])
    found.pop("ext_authz_duration", None)
    return found


def seen(rig: Rig) -> Any:
    return rig.policy.checks[-1].attributes


# What policy sees.


def test_method_path_query_body_and_headers(rig: Rig) -> None:
    body = bytes(range(256))
    lines = [b"host: h", b"x-dup: 1", b"X-Dup: 2", b"x-raw: a\xe9\xff", b"content-length: 256", b"", b""]
    assert rig.raw(b"POST /api/chat HTTP/1.1\r\n" + b"\r\n".join(lines) + body).status_code == 200
    http = seen(rig).request.http
    headers = dict(http.headers)
    assert (http.method, http.path, http.raw_body) == ("POST", "/api/chat", body)
    assert headers["x-dup"] == "1,2"
    assert headers["x-raw"] == "a!!"
    assert headers["content-length"] == "256"
    assert not [name for name in headers if name.startswith("x-paddock-")]
    assert not headers.keys() & {"x-envoy-internal", "x-envoy-expected-rq-timeout-ms"}


def test_a_body_in_chunks_has_no_length(rig: Rig) -> None:
    request = b"POST /api/chat HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert rig.raw(request).status_code == 200
    http = seen(rig).request.http
    assert http.raw_body == b"abc"
    assert "content-length" not in http.headers


def test_a_withheld_body_shows_in_its_length(rig: Rig) -> None:
    rig.client.post("/v1/chat/secure_completion", content=b"sealed")
    http = seen(rig).request.http
    assert (http.raw_body, http.headers["content-length"]) == (b"", "6")


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/api/tags?a=%2e&b"), ("HEAD", "/api/tags"), ("OPTIONS", "/session"), ("GET", "/v1/models/a:b")],
)
def test_other_methods(rig: Rig, method: str, target: str) -> None:
    rig.ask(target, method)
    http = seen(rig).request.http
    assert (http.method, http.path) == (method, target)


def test_who_calls_and_since_when_is_envoys_word(rig: Rig) -> None:
    forged = ("x-paddock-started: 1", "x-paddock-client: 6.6.6.6", "x-paddock-length: 9", "x-forwarded-for: 6.6.6.6")
    lines = ["GET /v1/models HTTP/1.1", "host: h", "connection: close", *forged, "", ""]
    with socket.create_connection(("127.0.0.1", rig.port), 20, source_address=(ELSEWHERE, 0)) as connection:
        connection.sendall("\r\n".join(lines).encode())
        answer = connection.makefile("rb").read()
    assert seen(rig).source.address.socket_address.address == ELSEWHERE
    request_id = seen(rig).request.http.headers["x-request-id"]
    assert request_id.encode() in answer
    log = until(lambda: rig.policy.log_of(request_id))
    began = seen(rig).request.time.ToJsonString()
    assert log["common_properties"]["start_time"].rstrip("Z")[:26] == began.rstrip("Z")[:26]
    told = until(lambda: _logged(rig, request_id))
    assert told["started_us"] == str(seen(rig).request.time.ToMicroseconds())


def _logged(rig: Rig, request_id: str) -> dict[str, Any] | None:
    lines = [json.loads(line) for line in rig.log.read_text().splitlines() if line.startswith('{"')]
    return next((one for one in lines if one.get("request_id") == request_id), None)


# What clients get.


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 502, 503, 200])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_refusal_is_delivered_as_it_is(rig: Rig, status: int, method: str) -> None:
    body = f'{{"error":"é","status":{status}}}'

    def refuse(_: Message) -> Message:
        answer = deny(status, body, reason="why", tenant="Müller", key_prefix="nz_abc", endpoint="/api/tags")
        headers = answer.denied_response.headers
        headers.extend([header("retry-after", "3"), header("www-authenticate", "Bearer"), header("vary", "origin")])
        headers.append(header("x-ratelimit-limit-tokens", "4"))
        headers.append(header("access-control-allow-origin", "https://a.example"))
        return answer

    rig.policy.answer = refuse
    response = rig.ask("/api/tags", method)
    assert response.status_code == status
    assert response.content == (body.encode() if method == "GET" else b"")
    told = {
        name: response.headers[name] for name in response.headers if name not in ("date", "connection", "x-request-id")
    }
    assert told == {
        "content-type": "application/json",
        "content-length": str(len(body.encode())),
        "retry-after": "3",
        "www-authenticate": "Bearer",
        "vary": "origin",
        "x-ratelimit-limit-tokens": "4",
        "access-control-allow-origin": "https://a.example",
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    }
    assert metadata(rig, response) == {
        "reason": "why", "tenant": "Müller", "key_prefix": "nz_abc", "endpoint": "/api/tags"
    }  # fmt: skip
    log = until(lambda: rig.policy.log_of(response.headers["x-request-id"]))
    assert log["response"]["response_code"] == status
    assert log["response"]["response_code_details"] == "ext_authz_denied"


def test_a_preflight_is_answered(rig: Rig) -> None:
    def answer(_: Message) -> Message:
        said = deny(204, "", endpoint="/session", recorded="0")
        said.denied_response.headers.append(header("access-control-max-age", "600"))
        return said

    rig.policy.answer = answer
    response = rig.raw(b"OPTIONS /session HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["access-control-max-age"] == "600"
    assert metadata(rig, response) == {"endpoint": "/session", "recorded": "0"}


def test_what_is_admitted_has_policys_headers_once_and_the_grant(rig: Rig) -> None:
    async def answer(_request: Seen, writer: asyncio.StreamWriter) -> None:
        await reply(writer, 200, b"{}", x_ratelimit_limit_tokens="6", x_budget_period="never")

    def admit(_: Message) -> Message:
        said = allow(grant='{"a":"\\u00e9"}', tenant="Müller", key_prefix="nz_abc", model="m", signals="x,y")
        names = ("x-ratelimit-limit-tokens", "x-budget-period")
        said.ok_response.response_headers_to_add.extend(header(name, "ours") for name in names)
        return said

    rig.upstream.answer = answer
    rig.policy.answer = admit
    rig.processor.process = script()
    response = rig.client.post("/api/chat", content=b"{}")
    assert response.status_code == 200
    for name in ("x-ratelimit-limit-tokens", "x-budget-period"):
        assert response.headers.get_list(name) == ["ours"]
    assert not response.headers.keys() & {"grant", "tenant", "key_prefix", "model", "signals"}
    assert metadata(rig, response) == {
        "grant": '{"a":"\\u00e9"}', "tenant": "Müller", "key_prefix": "nz_abc", "model": "m", "signals": "x,y"
    }  # fmt: skip
    (sent,) = rig.upstream.seen
    assert not {name for name, _ in sent.headers} & {"grant", "tenant", "key_prefix", "model", "signals"}
    told = rig.processor.requests[0].metadata_context.filter_metadata[AUTHZ]
    assert told["grant"] == '{"a":"\\u00e9"}'


def test_a_long_grant_arrives(rig: Rig) -> None:
    rig.policy.answer = lambda _: allow(grant="x" * 1_000_000)
    rig.processor.process = script()
    assert rig.client.post("/api/chat", content=b"{}").status_code == 200
    assert len(rig.processor.requests[0].metadata_context.filter_metadata[AUTHZ]["grant"]) == 1_000_000


def test_a_client_that_leaves_meanwhile_harms_nobody(rig: Rig) -> None:
    rig.policy.seconds = 0.3
    with rig.connect() as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: h\r\n\r\n")
        until(lambda: rig.policy.checks)
    rig.policy.seconds = 0
    assert [rig.client.get("/v1/models").status_code for _ in range(5)] == [200] * 5
