"""Checks over HTTP are read and answered as those over gRPC are: the same request, the same words to each reader."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policy.edge import check, http_codec
from policy.edge.http_codec import METADATA, STAND_INS, Unmarked, reply_to, request_from
from policy.rules.decision import Allow, Answer, Deny, Reason, Request
from policy.rules.grant import Duty, Grant

MARKS = {http_codec.STARTED: "1790000000123456", http_codec.CLIENT: "192.0.2.7"}
GRANT = Grant(
    "id", 1, Duty.METER, "/api/chat", "mistral:7b", True, 3, "Müller & Söhne", 4, "nz_abcdefghi", "e", 10, 20
)  # fmt: skip
LIMIT = ("x-ratelimit-limit-requests", "9")


def over_grpc(method: str, target: str, headers: dict[str, str], body: bytes) -> Request:
    message = check.CheckRequest()
    attributes = message.attributes
    attributes.request.time.FromMicroseconds(int(MARKS[http_codec.STARTED]))
    attributes.source.address.socket_address.address = MARKS[http_codec.CLIENT]
    http = attributes.request.http
    http.method, http.path, http.raw_body = method, target, body
    http.headers.update(headers)
    return check.request_from(message)


@pytest.mark.parametrize(
    ("target", "headers", "body"),
    [
        ("/api/chat", {"content-length": "7", "authorization": "Bearer x"}, b'{"a":1}'),
        ("/api/chat?", {"content-length": "9"}, b'{"a":1}'),  # cut off
        ("/api/chat?a=/b?c", {"content-length": "7"}, b""),  # withheld
        ("/api/chat", {"x-envoy-auth-partial-body": "true"}, b"{"),
        ("/api/chat", {"content-length": "1e3", "x-a": "1,2"}, b"{}"),
        ("/v1/models/x", {}, b""),
    ],
)
def test_a_request_is_read_alike(target: str, headers: dict[str, str], body: bytes) -> None:
    given = {"x-request-id": "abc", **headers}
    sent = {name: value for name, value in given.items() if name != "content-length"} | MARKS
    sent["content-length"] = str(len(body))  # Envoy's own, of what it sends
    if "content-length" in given:
        sent[http_codec.LENGTH] = given["content-length"]
    assert request_from("POST", target, sent, body) == over_grpc("POST", target, given, body)


@pytest.mark.parametrize(
    "wrong",
    [
        {http_codec.STARTED: ""}, {http_codec.STARTED: "1,2"}, {http_codec.STARTED: "-1"}, {http_codec.STARTED: "²"},
        {http_codec.CLIENT: ""}, {http_codec.CLIENT: "6.6.6.6,192.0.2.7"},
    ],
)  # fmt: skip
def test_without_envoys_marks_nothing_is_judged(wrong: dict[str, str]) -> None:
    with pytest.raises(Unmarked):
        request_from("GET", "/v1/models", MARKS | wrong, b"")


def read(reply: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = reply.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    pairs = [line.partition(": ")[::2] for line in lines]
    assert len(dict(pairs)) == len(pairs)
    return int(first.split(" ")[1]), dict(pairs), body


DECISIONS: list[Allow | Deny | Answer] = [
    *(Deny(one, retry_after=4, headers=(LIMIT,), tenant="t", tenant_id=5, key_prefix="p", model="m") for one in Reason),
    *(Deny(Reason.RATE_TOKENS, recorded=one, endpoint="/api/chat", message="so") for one in (None, True, False)),
    Allow(GRANT, (LIMIT,), "192.0.2.9:11434", signals=("a", "b")),
    Allow(None, tenant="t"),
    Answer(204, headers=(("vary", "origin"),), endpoint="/session", unrecorded=True),
    Answer(200, b'{"a":1}', tenant="t", tenant_id=4, key_prefix="s", endpoint="/session"),
]  # fmt: skip


def _expected(message: Any) -> tuple[int, dict[str, str], bytes, dict[str, str]]:
    metadata = {name: one.string_value for name, one in message.dynamic_metadata.fields.items()}
    if message.status.code == 0:
        headers = {one.header.key: one.header.value for one in message.ok_response.response_headers_to_add}
        return 200, headers, b"", metadata
    denied = message.denied_response
    status = STAND_INS.get(denied.status.code, denied.status.code)
    return status, {one.header.key: one.header.value for one in denied.headers}, denied.body.encode(), metadata


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/secure_completion"])
def test_a_decision_is_answered_alike(path: str) -> None:
    request = request_from("POST", path, MARKS | {"x-request-id": "abc"}, b"")
    for decision in DECISIONS:
        status, headers, body, metadata = _expected(check.response_to(decision, request))
        found, told, text = read(reply_to(decision, request))
        length = told.pop("content-length", None)
        assert (found, told, text) == (status, headers | metadata, body), decision
        assert set(metadata) <= set(METADATA)
        assert not set(headers) & set(METADATA)
        assert length == (None if status == 204 else str(len(body)))
        assert found == 200 if isinstance(decision, Allow) else 200 != found < 500


def test_the_body_of_a_refused_head_travels_as_a_header() -> None:
    request = request_from("HEAD", "/api/tags", MARKS | {"x-request-id": "abc"}, b"")
    _, told, body = read(reply_to(Deny(Reason.KEY_UNKNOWN), request))
    assert (body, told["content-length"]) == (b"", "0")
    assert told[http_codec.BODY_OF_HEAD] == Deny(Reason.KEY_UNKNOWN).body("abc").decode()


def test_no_value_ends_its_line() -> None:
    request = request_from("POST", "/api/chat", MARKS, b"")
    for model in ("a\r\ngrant: {}", "a\ngrant: {}", "a\rb", "\0", "\ud800", "a\x7f"):
        _, told, _ = read(reply_to(Deny(Reason.MODEL, model=model), request))
        assert "grant" not in told
        assert not [letter for letter in told["model"] if ord(letter) < 32]
    _, told, _ = read(reply_to(Allow(replace(GRANT, tenant="é\u00a0x")), request))
    assert told["tenant"] == "é\u00a0x"
