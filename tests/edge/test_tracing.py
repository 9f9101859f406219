"""Traces through Envoy, policy and processor, as a collector receives them; and what must never be in them."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests import harness
from tests.collector import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

    from tests.collector import Span
    from tests.harness import Client, Gateway

SERVICES = {"paddock-envoy", "paddock-policy", "paddock-processor"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    endpoint = f"127.0.0.1:{collector.port}"
    with harness.running(tmp_path_factory.mktemp("traced") / "data", PADDOCK_OTLP_ENDPOINT=endpoint) as running:
        yield running


def w3c() -> tuple[str, dict[str, str]]:
    """A client's trace, and the header that names it."""
    trace = secrets.token_hex(16)
    return trace, {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}


def ask(client: Client, text: str, headers: dict[str, str], **fields: object) -> httpx.Response:
    body = {"model": harness.MODELS[0], "messages": [{"role": "user", "content": text}], **fields}
    return client.http.post("/api/chat", json=body, headers=headers)


def whole(collector: Collector, trace: str, *names: str) -> dict[str, Span]:
    """The spans of a trace by name, once all of these are there."""

    def look() -> dict[str, Span] | None:
        found = {span.name.rpartition("/")[2]: span for span in collector.of(trace)}
        return found if set(names) <= set(found) else None

    try:
        return harness.eventually(look, patience=20)
    except AssertionError as error:
        raise AssertionError(f"of {names} only {[span.name for span in collector.of(trace)]}") from error


def test_one_trace_across_all_three(traced: Gateway, collector: Collector) -> None:
    client = traced.client()
    trace, headers = w3c()
    answer = ask(client, "one two three", headers)
    assert answer.status_code == 200
    spans = whole(collector, trace, "chat", "Check", "Settle", "redis admit", "redis settle")
    assert {span.service for span in spans.values()} == SERVICES
    by_id = {span.id: span for span in spans.values()}
    front = spans["chat"]
    assert front.parent == headers["traceparent"].split("-")[2]
    assert front.attributes["guid:x-request-id"] == answer.headers["x-request-id"]
    for name, service in (("Check", "paddock-policy"), ("Settle", "paddock-processor")):
        asked = by_id[spans[name].parent]  # Envoy's own span of that call
        assert (asked.service, asked.parent) == ("paddock-envoy", front.id)
        assert spans[name].service == service
    assert spans["redis admit"].parent == spans["Check"].id
    assert spans["redis settle"].parent == spans["Settle"].id
    assert spans["Check"].begun <= spans["redis admit"].begun <= spans["redis admit"].ended <= spans["Check"].ended
    assert spans["Check"].attributes == {"paddock.endpoint": "/api/chat", "paddock.decision": "allowed"}
    used = json.loads(answer.text.splitlines()[-1])
    assert spans["Settle"].attributes == {
        "paddock.endpoint": "/api/chat",
        "paddock.tenant": client.tenant,
        "paddock.model": harness.MODELS[0],
        "paddock.outcome": "completed",
        "paddock.prompt_tokens": str(used["prompt_eval_count"]),
        "paddock.completion_tokens": str(used["eval_count"]),
    }


def test_no_word_of_a_client_is_in_any_span(traced: Gateway, collector: Collector) -> None:
    """Each place that a client can write to has a word of its own; none of them reaches the collector."""
    client = traced.client()
    said = {name: f"zq{secrets.token_hex(6)}" for name in ("prompt", "agent", "cookie", "query", "state", "baggage",
            "client", "host", "path", "body", "key", "model")}  # fmt: skip
    trace, headers = w3c()
    headers |= {
        "user-agent": said["agent"],
        "cookie": said["cookie"],
        "tracestate": f"a={said['state']}",
        "baggage": f"a={said['baggage']}",
        "x-client-trace-id": said["client"],
        "host": f"{said['host']}.example",
        "x-envoy-force-trace": said["client"],
    }
    ask(client, said["prompt"], headers)
    ask(client, said["prompt"], headers, stream=False)
    http = client.http
    http.post(f"/api/chat?{said['query']}", json={}, headers=headers)
    http.post(f"/{said['path']}", json={}, headers=headers)
    http.post("/api/pull", json={"model": said["model"]}, headers=headers)
    http.post("/api/chat", content=said["body"], headers=headers)
    http.post("/api/chat", json={"model": said["model"], "messages": []}, headers=headers)
    http.get(f"/v1/models/{said['model']}", headers=headers)
    with traced.http(f"nz_{said['key']}") as stranger:
        assert stranger.post("/api/chat", json={}, headers=headers).status_code == 401
    last, header = w3c()
    assert ask(client, said["prompt"], headers | header, stream=False).text.count(said["prompt"]) == 1
    whole(collector, last, "chat", "Check", "Settle", "redis settle")
    whole(collector, trace, "chat", "unknown", "blocked", "query-refused", "Check", "Settle", "redis settle")
    decisions = {span.attributes.get("paddock.decision", "") for span in collector.of(trace)}
    assert len(decisions - {""}) >= 3, decisions
    received = b"\n".join(collector.bodies)
    for name, word in said.items():
        assert word.encode() not in received, name
    assert client.key.encode() not in received
    assert client.key[12:].encode() not in received


def test_a_settlement_after_its_client_left(collector: Collector, tmp_path: Path) -> None:
    """What processor meters; what Envoy metered, policy then settles from the access log, which is in no trace."""
    endpoint = f"127.0.0.1:{collector.port}"
    with harness.running(tmp_path / "data", metering="processor", PADDOCK_OTLP_ENDPOINT=endpoint) as gateway:
        trace, headers = w3c()
        body = {"model": harness.MODELS[0], "messages": [{"role": "user", "content": "x !tokens=400 !delay=20"}]}
        with gateway.client().http.stream("POST", "/api/chat", json=body, headers=headers) as response:
            next(response.iter_raw())
        spans = whole(collector, trace, "Process", "redis settle")
    assert spans["redis settle"].parent == spans["Process"].id
    assert spans["Process"].attributes["paddock.outcome"] == "aborted"


def test_a_trace_that_is_not_kept_makes_no_span(traced: Gateway, collector: Collector) -> None:
    client = traced.client()
    unkept, kept = secrets.token_hex(16), w3c()
    assert ask(client, "hello", {"traceparent": f"00-{unkept}-{secrets.token_hex(8)}-00"}).status_code == 200
    assert ask(client, "hello", kept[1]).status_code == 200
    whole(collector, kept[0], "chat", "Check", "Settle")
    assert collector.of(unkept) == []


def test_without_a_collector_requests_pass(traced: Gateway, collector: Collector) -> None:
    collector.stop()
    try:
        client = traced.client()
        assert [ask(client, "hello", w3c()[1]).status_code for _ in range(3)] == [200] * 3
        log = traced.instance.log("policy-0")
        harness.eventually(lambda: "spans not taken" in log.read_text())
    finally:
        collector.start()
    trace, headers = w3c()
    assert ask(client, "hello", headers).status_code == 200
    whole(collector, trace, "chat", "Check", "Settle")


@pytest.mark.parametrize("service", ["policy", "processor"])
def test_off_means_not_even_imported(service: str) -> None:
    """redis-py looks for the SDK's metrics by itself; our spans, and the SDK's, are not there."""
    ours = "policy.edge.tracing", "policy.edge.otlp", "opentelemetry.sdk.trace"
    script = f"import sys, {service}.__main__; print([name for name in {ours} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("endpoint", ["collector", "ftp://collector:4318", "http://user:word@collector:4318"])
def test_endpoints_that_are_none(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from policy.rules.settings import otlp_url

    if endpoint == "collector":
        assert otlp_url(endpoint) == "http://collector:4318/v1/traces"
    else:
        with pytest.raises(ValueError, match="PADDOCK_OTLP_ENDPOINT"):
            otlp_url(endpoint)
