"""One exchange, phase by phase, without Envoy: given these bytes, then this."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from policy.rules.grant import Duty, Grant, Splice
from policy.rules.speeds import Speeds
from processor.exchange import Answer, Exchange, Pass

GRANT = Grant(
    request_id="r1", started_at=1, duty=Duty.METER, endpoint="/api/chat", model="m", stream=True, tenant_id=1,
    tenant="t", key_id=1, key_prefix="nz_123456789", epoch="e", prompt_tokens=7, cap=10,
)  # fmt: skip
NDJSON = {":status": "200", "content-type": "application/x-ndjson"}
DELTA = b'{"model":"m","message":{"role":"assistant","content":"a"},"done":false}\n'
FINAL = b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"prompt_eval_count":3,"eval_count":2}\n'


def test_a_stream_from_beginning_to_end() -> None:
    exchange = Exchange(GRANT, begun=0.0)
    assert exchange.request_headers(False) == Pass(watch_response=True)
    assert exchange.response_headers(NDJSON, False, 1.0) == Pass(body_mode="stream")
    assert exchange.response_body(DELTA, False, 1.5) == Pass()
    assert exchange.response_body(DELTA, False, 1.6) == Pass()
    assert exchange.response_body(FINAL, False, 1.7) == Pass()
    assert exchange.response_body(b"", True, 1.8) == Pass(ended=True)
    settled = exchange.settlement(2.0, Speeds(), whole=True)
    assert (settled.prompt_tokens, settled.completion_tokens, settled.exact) == (3, 2, True)
    assert settled.event["ttft"] == 1_500_000
    assert settled.event["outcome"] == "completed"


def test_a_stream_broken_off_is_charged_for_what_was_seen() -> None:
    exchange = Exchange(GRANT, begun=0.0)
    exchange.response_headers(NDJSON, False, 1.0)
    exchange.response_body(DELTA, False, 1.5)
    settled = exchange.settlement(2.0, Speeds(), whole=False)
    assert (settled.prompt_tokens, settled.completion_tokens, settled.exact) == (None, 1, False)
    assert settled.event["outcome"] == "aborted"


def test_a_document_nobody_waited_for_is_charged_by_its_time() -> None:
    speeds = Speeds()
    speeds.learn("m", 1000, 100 * 10**9)  # ten a second
    exchange = Exchange(replace(GRANT, stream=False, cap=100), begun=0.0)
    assert exchange.settlement(4.0, speeds, whole=False).completion_tokens == 40
    assert exchange.settlement(60.0, speeds, whole=False).completion_tokens == 100


def test_an_error_of_the_upstream_is_replaced_and_costs_nothing() -> None:
    exchange = Exchange(GRANT, begun=0.0)
    verdict = exchange.response_headers({":status": "500", "content-type": "text/plain"}, False, 1.0)
    assert isinstance(verdict, Pass)
    assert verdict.replace
    assert verdict.ended
    assert (":status", "502") in verdict.set_headers
    assert json.loads(verdict.body or b"")["error"]["code"] == 502
    settled = exchange.settlement(1.0, Speeds(), whole=True)
    assert (settled.prompt_tokens, settled.completion_tokens, settled.exact) == (0, 0, True)


def test_splices_are_made_and_never_on_another_body() -> None:
    grant = replace(GRANT, splices=(Splice(1, 0, '"a":1,'),))
    exchange = Exchange(grant, begun=0.0)
    assert exchange.request_headers(False) == Pass(buffer_request=True, watch_response=True)
    verdict = exchange.request_body(b'{"b":2}')
    assert verdict == Pass(body=b'{"a":1,"b":2}', set_headers=(("content-length", "13"),))
    refused = Exchange(replace(grant, splices=(Splice(100, 0, "x"),)), begun=0.0).request_body(b"{}")
    assert isinstance(refused, Answer)
    assert refused.status == 503


def test_what_cannot_be_read_is_charged_as_reserved() -> None:
    exchange = Exchange(GRANT, begun=0.0)
    exchange.response_headers({**NDJSON, "content-encoding": "br"}, False, 1.0)
    exchange.response_body(b"\x01\x02", True, 1.5)
    settled = exchange.settlement(2.0, Speeds(), whole=True)
    assert (settled.completion_tokens, settled.exact) == (GRANT.cap, False)


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"{"])
def test_a_description_that_cannot_be_read_is_not_passed_on(body: bytes) -> None:
    exchange = Exchange(replace(GRANT, duty=Duty.SHOW, endpoint="/api/show", epoch=""), begun=0.0)
    assert exchange.response_headers({":status": "200"}, False, 1.0) == Pass(body_mode="buffer")
    verdict = exchange.response_body(body, True, 1.1)
    assert isinstance(verdict, Pass)
    assert (":status", "502") in verdict.set_headers
    assert not exchange.reserves


def test_a_grant_survives_its_journey() -> None:
    grant = replace(GRANT, splices=(Splice(1, 2, "ä"),), hide_usage=True)
    assert Grant.from_json(grant.to_json()) == grant
    for broken in ("", "{}", "[]", '{"duty":"other"}', grant.to_json()[:-1]):
        with pytest.raises(ValueError):
            Grant.from_json(broken)
