"""Tokens recorded are the tokens that the upstream counted: every dialect, streamed and not, whole and broken off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.harness import MODELS, eventually, request_id

if TYPE_CHECKING:
    from tests.harness import Client, Gateway

DIALECTS = {
    "/api/chat": "messages",
    "/api/generate": "prompt",
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
}


@pytest.fixture(scope="module", params=["gateway", "processor_gateway"])
def gateway(request: pytest.FixtureRequest) -> Gateway:
    """Whoever meters, Envoy or processor: the figures are the same."""
    found: Gateway = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Client:
    return gateway.client()


def ask(client: Client, path: str, text: str, *, stream: bool, **fields: Any) -> httpx.Response:
    content: Any = [{"role": "user", "content": text}] if DIALECTS[path] == "messages" else text
    return client.http.post(path, json={"model": MODELS[0], DIALECTS[path]: content, "stream": stream, **fields})


def truth(gateway: Gateway, response: httpx.Response) -> dict[str, Any]:
    """What the upstream says it did for a request."""

    def ended() -> dict[str, Any] | None:
        found = gateway.upstream.served(request_id(response))
        return found[-1] if found and found[-1]["outcome"] != "running" else None

    return eventually(ended)


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["", " !split", " !merge", " !crlf", " !gzip-always", " !gzip-always !split"])
def test_exact(gateway: Gateway, client: Client, path: str, stream: bool, how: str) -> None:
    response = ask(client, path, f"one two three{how}", stream=stream)
    assert response.status_code == 200
    row, served = gateway.audit(request_id(response)), truth(gateway, response)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (served["prompt_tokens"], served["completion_tokens"])
    assert row["estimated"] is False
    assert (row["model"], row["endpoint"], row["outcome"]) == (MODELS[0], path, "completed")


@pytest.mark.parametrize(("path", "name"), [("/api/embed", "input"), ("/v1/embeddings", "input")])
def test_embeddings_are_charged_on_their_prompt(gateway: Gateway, client: Client, path: str, name: str) -> None:
    response = client.http.post(path, json={"model": "nomic-embed-text", name: ["one two", "three"]})
    row = gateway.audit(request_id(response))
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (3, 0, False)


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("stream", [False, True])
def test_what_nobody_counted_is_charged_by_estimate(gateway: Gateway, client: Client, path: str, stream: bool) -> None:
    """Ollama's own dialect leaves a count out that was not set; the others say zero. A stream is counted by its pieces,
    and an answer in one piece by its length."""
    row = gateway.audit(request_id(ask(client, path, "!nocount !tokens=300", stream=stream)))
    assert row["estimated"]
    assert row["prompt_tokens"] > 0
    assert row["completion_tokens"] == 300 if stream else 150 <= row["completion_tokens"] <= 600


def test_legacy_embeddings_are_charged_by_estimate(gateway: Gateway, client: Client) -> None:
    response = client.http.post("/api/embeddings", json={"model": "nomic-embed-text", "prompt": "one two three"})
    row = gateway.audit(request_id(response))
    assert row["estimated"]
    assert row["prompt_tokens"] > 0
    assert row["completion_tokens"] == 0


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("how", ["", " !gzip-always"])
def test_a_client_that_leaves_pays_for_what_was_produced(gateway: Gateway, client: Client, path: str, how: str) -> None:
    content: Any = f"x !tokens=500 !delay=20{how}"
    if DIALECTS[path] == "messages":
        content = [{"role": "user", "content": content}]
    body = {"model": MODELS[0], DIALECTS[path]: content, "stream": True}
    with client.http.stream("POST", path, json=body) as response:
        pieces = response.iter_raw()
        for _ in range(6):
            next(pieces)
    row, served = gateway.audit(request_id(response)), truth(gateway, response)
    assert row["estimated"]
    assert row["outcome"] == "aborted"
    assert row["completion_tokens"] >= 3
    assert abs(row["completion_tokens"] - served["completion_tokens"]) <= 25  # what was on its way


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("how", ["", " !gzip-always"])
def test_an_upstream_that_dies_is_paid_for_what_it_said(gateway: Gateway, client: Client, path: str, how: str) -> None:
    """The connection breaks in the middle: the client sees that, and the ledger too."""
    content: Any = f"a b c d e f g h !die-after=4 !delay=10{how}"
    if DIALECTS[path] == "messages":
        content = [{"role": "user", "content": content}]
    body = {"model": MODELS[0], DIALECTS[path]: content, "stream": True}
    with client.http.stream("POST", path, json=body) as response:
        try:
            for _ in response.iter_raw():
                pass
        except httpx.HTTPError:
            pass
    row, served = gateway.audit(request_id(response)), truth(gateway, response)
    assert row["estimated"]
    assert abs(row["completion_tokens"] - served["completion_tokens"]) <= 1


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("how", ["!claim-br", "!claim-gzip"])
def test_what_nobody_reads_costs_all_that_was_reserved(
    gateway: Gateway, client: Client, path: str, leaves: bool, how: str
) -> None:
    """An encoding that the gateway does not know, and one that it knows, damaged; whether the client stays or not."""
    content: Any = f"x !tokens=50 !delay=20 {how}"
    if DIALECTS[path] == "messages":
        content = [{"role": "user", "content": content}]
    cap: dict[str, Any] = {"options": {"num_predict": 321}} if path.startswith("/api") else {"max_tokens": 321}
    body = {"model": MODELS[0], DIALECTS[path]: content, "stream": True, **cap}
    with client.http.stream("POST", path, json=body) as response:
        pieces = response.iter_raw()
        next(pieces, None)
        while not leaves and next(pieces, None):
            pass
    row = gateway.audit(request_id(response))
    assert (row["completion_tokens"], row["estimated"]) == (321, True)


@pytest.mark.parametrize("path", DIALECTS)
def test_a_stream_is_cut_at_its_cap(gateway: Gateway, client: Client, path: str) -> None:
    """An upstream that does not keep to its cap: the answer ends in its dialect's own terms."""
    cap = {"options": {"num_predict": 5}} if path.startswith("/api") else {"max_tokens": 5}
    response = ask(client, path, "x !overrun !tokens=30", stream=True, **cap)
    row = gateway.audit(request_id(response))
    assert row["outcome"] == "cut"
    assert 5 <= row["completion_tokens"] <= 6
    last = response.text.rstrip().splitlines()[-1]
    assert '"done":true' in last if path.startswith("/api") else last == "data: [DONE]"
    assert "w9" not in response.text


@pytest.mark.parametrize("path", DIALECTS)
def test_an_error_in_a_stream(gateway: Gateway, client: Client, path: str) -> None:
    response = ask(client, path, "a b c d !error-after=2", stream=True)
    row = gateway.audit(request_id(response))
    assert (row["completion_tokens"], row["estimated"], row["outcome"]) == (2, True, "upstream_error")
    assert "upstream error" in response.text


def test_an_error_before_any_answer_costs_nothing(gateway: Gateway, client: Client) -> None:
    row = gateway.audit(request_id(client.chat("x !error-before=500")))
    assert (row["prompt_tokens"], row["completion_tokens"], row["status"]) == (0, 0, 502)


def test_usage_is_kept_from_those_who_did_not_ask(client: Client) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert '"usage"' not in ask(client, path, "one two", stream=True).text
        asked = ask(client, path, "one two", stream=True, stream_options={"include_usage": True})
        assert '"usage"' in asked.text


def test_machine_time_is_kept(gateway: Gateway, client: Client) -> None:
    response = client.chat("one two three")
    row = gateway.audit(request_id(response))
    said = response.json()
    assert row["eval_ns"] == said["eval_duration"]
    assert row["prompt_ns"] == said["prompt_eval_duration"]
    assert row["load_ns"] == said["load_duration"]


def test_the_day_adds_up(gateway: Gateway) -> None:
    client = gateway.client()
    responses = [client.chat(f"number {number}") for number in range(10)]
    rows = [gateway.audit(request_id(response)) for response in responses]
    asked = "SELECT u.* FROM usage_daily u JOIN api_key k ON k.id = u.key_id WHERE k.prefix = $1"
    eventually(lambda: sum(day["requests"] for day in gateway.sql(asked, client.prefix)) >= 10)
    (day,) = gateway.sql(asked, client.prefix)
    assert day["requests"] == 10
    assert day["prompt_tokens"] == sum(row["prompt_tokens"] for row in rows)
    assert day["completion_tokens"] == sum(row["completion_tokens"] for row in rows)
