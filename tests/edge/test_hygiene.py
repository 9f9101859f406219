"""What Envoy takes off requests and answers, what it writes about them, and the one shape of an error."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from gateway.envoy_config import Rate
from tests.edge.rig import Rig, running, until
from tests.edge.services import Seen, allow, deny, immediate, reply, script

if TYPE_CHECKING:
    import asyncio

    import httpx

    from tests.edge.services import Stream

SECRET = "nz_abcdefghi0123456789"
CREDENTIALS = {
    "authorization": f"Bearer {SECRET}",
    "proxy-authorization": f"Basic {SECRET}",
    "x-api-key": SECRET,
    "api-key": SECRET,
    "x-goog-api-key": SECRET,
    "cookie": f"session={SECRET}",
}
FORGED = {
    "x-paddock-upstream": "127.0.0.1:1",
    "X-Paddock-Grant": "{}",
    "x-envoy-original-path": "/api/pull",
    "x-envoy-upstream-rq-timeout-ms": "1",
    "x-envoy-upstream-rq-per-try-timeout-ms": "1",
    "x-envoy-max-retries": "9",
    "x-envoy-retry-on": "5xx",
    "x-envoy-decorator-operation": "x",
    "x-envoy-expected-rq-timeout-ms": "1",
    "x-envoy-force-trace": "1",
    "x-envoy-internal": "true",
    "x-envoy-external-address": "6.6.6.6",
    "x-request-id": "00000000-0000-4000-8000-000000000000",
    "x-forwarded-for": "6.6.6.6",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "evil.example",
    "x-real-ip": "6.6.6.6",
    "forwarded": "for=6.6.6.6",
    "x-original-url": "/api/pull",
    "x-rewrite-url": "/api/pull",
    "x-http-method-override": "DELETE",
}


def test_credentials_reach_policy_and_end_there(rig: Rig) -> None:
    rig.processor.process = script()
    assert rig.client.post("/api/chat", content=b"{}", headers=CREDENTIALS).status_code == 200
    seen_by_policy = dict(rig.policy.checks[0].attributes.request.http.headers)
    assert {name: seen_by_policy[name] for name in CREDENTIALS} == CREDENTIALS
    assert SECRET not in str(rig.processor.requests)
    assert SECRET not in str(rig.upstream.seen)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"])
def test_no_native_route_forgets_to_strip(rig: Rig, path: str) -> None:
    rig.client.post(path, content=b"{}", headers=CREDENTIALS)
    assert [seen.target for seen in rig.upstream.seen] == [path]
    assert SECRET not in str(rig.upstream.seen)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
def test_no_openai_route_forgets_to_strip(rig: Rig, path: str) -> None:
    rig.client.post(path, content=b"{}", headers=CREDENTIALS)
    rig.client.get("/v1/models/mistral:7b", headers=CREDENTIALS)
    assert [seen.target for seen in rig.upstream.seen] == [path, "/v1/models/mistral:7b"]
    assert SECRET not in str(rig.upstream.seen)


def test_the_gateways_own_pages_get_the_key(rig: Rig) -> None:
    for path in ("/api/tags", "/v1/models"):
        rig.client.get(path, headers=CREDENTIALS)
    assert [seen.header("authorization") for seen in rig.pages.seen] == [f"Bearer {SECRET}"] * 2
    assert len(rig.policy.checks) == 2
    assert rig.processor.requests == []


def test_forged_headers_have_no_effect(rig: Rig) -> None:
    rig.processor.process = script()
    response = rig.client.post("/api/chat", content=b"{}", headers=FORGED)
    assert response.status_code == 200
    check = rig.policy.checks[0].attributes
    assert check.source.address.socket_address.address == "127.0.0.1"
    for headers in (dict(check.request.http.headers), dict(rig.upstream.seen[0].headers)):
        assert not [name for name in headers if name.startswith("x-paddock-")]
        for name in FORGED:
            if name.startswith("x-envoy-"):
                assert headers.get(name) != FORGED[name]
        assert headers["x-request-id"] == response.headers["x-request-id"] != FORGED["x-request-id"]
    assert [seen.target for seen in rig.upstream.seen] == ["/api/chat"]
    assert not {name for name, _ in rig.upstream.seen[0].headers} & {
        "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "forwarded",
    }  # fmt: skip


def test_what_would_change_the_answer_is_not_passed_on(rig: Rig) -> None:
    headers = {"accept-encoding": "gzip", "origin": "https://evil.example", "referer": "https://evil.example/x"}
    rig.client.post("/api/chat", content=b"{}", headers=headers)
    names = [name for name, _ in rig.upstream.seen[0].headers]
    assert not set(names) & set(headers)
    assert not [name for name in names if name.startswith("x-envoy-")]
    assert rig.upstream.seen[0].header("host") == "127.0.0.1", "Ollama on loopback refuses the public name"


def test_a_header_with_an_underscore_is_refused(rig: Rig) -> None:
    assert_error(rig.ask("/healthz", "GET", "x_paddock_grant: 1"), 400)


def test_too_many_and_too_large_headers_are_refused(rig: Rig) -> None:
    assert_error(rig.ask("/healthz", "GET", *(f"h{number}: 1" for number in range(120))), 400)
    assert_error(rig.ask("/healthz", "GET", f"h: {'x' * 40_000}"), 400)


@pytest.mark.parametrize(
    "framing",
    [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "content-length: 1\r\ncontent-length: 2",
        "transfer-encoding: gzip",
        "transfer-encoding: chunked, chunked",
        "content-length: +1",
        "content-length: 1, 1",
        "a\x01b: x",
    ],
)
def test_ambiguous_framing_is_refused(rig: Rig, framing: str) -> None:
    response = rig.raw(f"POST /api/chat HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n0\r\n\r\n".encode())
    assert_error(response, 400)
    assert rig.upstream.seen == []


def test_answers_do_not_say_who_made_them(rig: Rig) -> None:
    async def talkative(_: Seen, writer: asyncio.StreamWriter) -> None:
        await reply(
            writer, 200, b"{}", server="uvicorn", via="1.1 x", x_powered_by="y", x_envoy_secret="z", x_paddock_a="1"
        )

    rig.upstream.answer = rig.pages.answer = talkative
    for response in (
        rig.client.post("/api/chat", content=b"{}"),
        rig.client.get("/api/tags"),
        rig.client.get("/healthz"),
        rig.client.get("/api/pull"),
        rig.ask("/api%2fpull"),
        rig.ask("/healthz", "GET", "x_y: 1"),
    ):
        names = set(response.headers)
        assert not names & {"server", "via", "x-powered-by"}
        assert not [name for name in names if name.startswith(("x-envoy-", "x-paddock-"))]
        assert "envoy" not in response.text.lower()


# Errors.

KINDS = {
    400: ("bad request", "bad_request"),
    403: ("forbidden", "forbidden"),
    413: ("request body too large", "payload_too_large"),
    429: ("too many requests from this address", "rate_limited"),
    502: ("upstream unavailable", "bad_gateway"),
    503: ("temporarily unavailable", "unavailable"),
}


def assert_error(response: httpx.Response, status: int) -> None:
    message, kind = KINDS[status]
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert re.fullmatch(r"[0-9a-f-]{36}", response.headers["x-request-id"])
    assert response.json() == {
        "error": {"message": message, "type": kind, "code": status},
        "request_id": response.headers["x-request-id"],
    }


def test_every_status_of_envoys_own_has_the_one_shape(rig: Rig) -> None:
    assert_error(rig.ask("/api/chat?x", "POST", "content-length: 0"), 400)
    assert_error(rig.ask("*"), 400)
    assert_error(rig.ask("/nothing"), 403)
    assert_error(rig.client.post("/api/chat", content=b"x" * 300_000), 413)


def test_direct_answers_are_left_alone(rig: Rig) -> None:
    health, heartbeat = rig.client.get("/healthz"), rig.client.get("/")
    assert (health.status_code, health.text) == (200, '{"status":"ok"}')
    assert health.headers["content-type"] == "application/json"
    assert (heartbeat.status_code, heartbeat.text) == (200, "Ollama is running")
    assert heartbeat.headers["content-type"] == "text/plain; charset=utf-8"
    for path in ("/", "/healthz"):
        head = rig.client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert "x-request-id" in head.headers
    assert rig.client.get("/healthz?verbose").status_code == 200


@pytest.mark.parametrize("status", [400, 401, 403, 413, 429, 503])
def test_a_denial_by_policy_is_delivered_as_it_is(rig: Rig, status: int) -> None:
    rig.policy.answer = lambda _: deny(status, '{"error":"policy says so"}')
    rig.processor.process = script()
    for response in (rig.client.post("/v1/chat/completions", content=b"{}"), rig.client.get("/api/tags")):
        assert (response.status_code, response.text) == (status, '{"error":"policy says so"}')
        assert response.headers["content-type"] == "application/json"
        assert "x-request-id" in response.headers
    assert rig.processor.requests == []
    assert rig.upstream.seen == []
    assert rig.pages.seen == []


def test_an_answer_of_processors_own_is_delivered_as_it_is(rig: Rig) -> None:
    step = immediate(429, b'{"error":"processor says so"}', "paddock_budget")
    rig.processor.process = script(steps={"request_headers": step})
    response = rig.client.post("/api/chat", content=b"{}")
    assert (response.status_code, response.text) == (429, '{"error":"processor says so"}')
    assert "x-request-id" in response.headers


def test_an_upstream_that_breaks_off_is_502(rig: Rig) -> None:
    async def broken(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.close()

    rig.upstream.answer = broken
    assert_error(rig.client.post("/api/chat", content=b"{}"), 502)


def test_metrics_are_for_this_host_alone(rig: Rig) -> None:
    assert rig.client.get("/metrics").status_code == 200
    other = _own_address()
    if other is None:
        pytest.skip("this machine has no address but loopback")
    assert_error(rig.ask("/metrics", host=other), 403)
    assert_error(rig.ask("/metrics", "GET", "x-forwarded-for: 127.0.0.1", host=other), 403)
    assert rig.ask("/healthz", host=other).status_code == 200
    assert len(rig.pages.seen) == 1


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:9", "[::1]:8080", "127.8.9.1"])
def test_metrics_are_asked_for_at_this_host(rig: Rig, host: str) -> None:
    assert rig.client.get("/metrics", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["chat.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "a@localhost",
     "192.0.2.1", "127.0.0.1:80:80", "xlocalhost", "localhost:", ""],
)  # fmt: skip
def test_metrics_are_for_no_page_whose_name_leads_here(rig: Rig, host: str) -> None:
    """A proxy on this host calls from loopback for everybody, and so does a browser here for a page whose name was made
    to mean 127.0.0.1: both ask for another host's metrics."""
    for headers in ({}, {"x-forwarded-host": "127.0.0.1"}):
        assert_error(rig.client.get("/metrics", headers={"host": host, **headers}), 403)
    assert rig.pages.seen == []


def _own_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; asks which address would be used
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return None if address.startswith("127.") else address


# The log for people.


def test_the_log_has_one_line_a_request_and_no_secret(rig: Rig) -> None:
    rig.policy.answer = lambda _: allow(grant="{}", tenant="acme", key_prefix="nz_abcdefghi", model="mistral:7b")
    prompt = "a prompt that nobody else may read"
    answered = rig.client.post("/api/chat", content=prompt.encode(), headers=CREDENTIALS)
    refused = rig.client.post(f"/api/chat?key={SECRET}", content=b"{}", headers=CREDENTIALS)
    listed = rig.client.get(f"/api/tags?key={SECRET}", headers={"referer": f"http://x/?{SECRET}", "user-agent": SECRET})
    malformed = rig.ask(f"/api%2fpull?{SECRET}", "GET", f"authorization: Bearer {SECRET}")
    wanted = [one.headers["x-request-id"] for one in (answered, refused, listed, malformed)]
    lines = until(lambda: _lines(rig, wanted))
    assert [line["status"] for line in lines] == [200, 400, 200, 403]
    assert [line["path"] for line in lines][:3] == ["/api/chat", "/api/chat", "/api/tags"]
    known = {name: lines[0][name] for name in ("tenant", "key_prefix", "model", "reason")}
    assert known == {"tenant": "acme", "key_prefix": "nz_abcdefghi", "model": "mistral:7b", "reason": None}
    assert SECRET not in rig.log.read_text()
    assert prompt not in rig.log.read_text()


@pytest.mark.parametrize(
    ("method", "path", "shown"),
    [
        ("GET", "/v1/chat/completion", True),
        ("GET", "/api/blobs/sha256-of-something", True),
        ("GET", "/v1/models/hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M", True),
        ("GET", "/nz_abcdefghi", True),  # a prefix is no secret
        ("GET", f"/{SECRET}", False),
        ("GET", f"/api/pull/{SECRET}", False),
        ("GET", f"/v1/models/{SECRET}", False),
        ("GET", f"/a;b={SECRET}", False),
        ("GET", f"/api%2fpull/{SECRET}", False),
        ("GET", "/nz%5Fabcdefghi0123456789", False),  # an encoded underscore is one
        ("POST", f"/api/chat/{SECRET}", False),
        ("GET", "/x/eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl", False),
        ("GET", "/v1/sk-proj-0123456789abcdefghijklmnop", False),  # somebody else's
        ("GET", "/" + "f" * 64, False),
    ],
)
def test_a_path_that_may_hold_a_secret_is_withheld(rig: Rig, method: str, path: str, shown: bool) -> None:
    response = rig.ask(path, method, "content-length: 0")
    (line,) = until(lambda: _lines(rig, [response.headers["x-request-id"]]))
    assert line["path"] == (path if shown else "(withheld)")
    assert SECRET not in rig.log.read_text()


def _lines(rig: Rig, wanted: list[str]) -> list[dict[str, Any]] | None:
    lines = {line["request_id"]: line for line in rig.access_log()}
    return [lines[one] for one in wanted] if set(wanted) <= set(lines) else None


def test_the_log_names_the_reason_of_a_denial(rig: Rig) -> None:
    rig.policy.answer = lambda _: deny(403, "{}", reason="model_not_available", tenant="acme")
    denied = rig.client.post("/api/chat", content=b"{}").headers["x-request-id"]
    (line,) = until(lambda: _lines(rig, [denied]))
    assert (line["reason"], line["tenant"], line["details"]) == ("model_not_available", "acme", "ext_authz_denied")


# A flood.


def test_a_flood_from_one_address_stops_before_policy() -> None:
    with running(rate=Rate(per_second=1, burst=20)) as rig:
        answers = [rig.client.post("/api/chat", content=b"{}") for _ in range(40)]
        admitted = [one for one in answers if one.status_code == 200]
        refused = [one for one in answers if one.status_code != 200]
        assert 20 <= len(admitted) <= 30, "the burst, and a little that dripped in meanwhile"
        assert len(rig.policy.checks) == len(admitted)
        for one in refused:
            assert_error(one, 429)
            assert int(one.headers["retry-after"]) >= 1
        assert_error(rig.client.get("/api/pull"), 429)

        # Each address has a bucket of its own, and no header gives a client another.
        assert_error(rig.ask("/healthz", "GET", "x-forwarded-for: 6.6.6.6"), 429)
        if (other := _own_address()) is not None:
            assert rig.ask("/healthz", host=other).status_code == 200


def test_the_shipped_rate_leaves_room_for_a_busy_client() -> None:
    with running(rate=None) as rig:
        assert {rig.client.get("/healthz").status_code for _ in range(300)} == {200}


def test_envoy_has_no_complaint_about_the_configuration(rig: Rig) -> None:
    rig.client.get("/healthz")
    for word in ("deprecated", "work-in-progress", "internal_address_config", "not configured", "critical"):
        assert word not in rig.complaints().lower(), rig.complaints()


def test_envoy_speaks_of_itself_in_json_and_without_secrets(rig: Rig) -> None:
    rig.processor.process = _failing
    rig.client.post("/api/chat", content=b"{}", headers=CREDENTIALS)
    rig.client.post(f"/api/chat?{SECRET}", content=b"x" * 300_000, headers=CREDENTIALS)
    until(lambda: "ext_proc" in rig.complaints())
    said = [json.loads(line) for line in rig.complaints().splitlines() if line.startswith("{")]
    assert {"time", "level", "service", "logger", "event"} <= set(said[-1])
    assert SECRET not in rig.complaints()


async def _failing(stream: Stream) -> Stream:
    async for message in stream:
        raise RuntimeError("on purpose")
        yield message
