"""The API reference, section by section, through the front door."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import MODELS, request_id

if TYPE_CHECKING:
    import httpx

    from tests.harness import Client, Gateway

HEADERS = (
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-budget-period",
    "x-budget-tokens-remaining",
)
BLOCKED = ("pull", "push", "create", "copy", "delete", "blobs/sha256:abc", "ps", "status", "me", "signout")


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Client:
    return gateway.client()


def is_error(response: httpx.Response, status: int, kind: str) -> None:
    """The one error shape, with the id that the header shows too, and nothing of what is behind the gate."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error", "request_id"}
    assert set(body["error"]) == {"message", "type", "code"}
    assert (body["error"]["type"], body["error"]["code"]) == (kind, status)
    assert body["request_id"] == request_id(response)
    assert not re.search(r"ollama|envoy|upstream connect|grpc", response.text, re.I)
    assert "server" not in response.headers
    assert not [name for name in response.headers if name.startswith("x-envoy")]


# Authentication


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer x"},
        {"authorization": "Bearer nz_"},
        {"authorization": "Basic bm86cGFzc3dvcmQ="},
        {"authorization": "Bearer nz_" + "A" * 41},
        {"authorization": "Bearer " + "x" * 5000},
        {"x-api-key": "nz_garbage"},
    ],
)
def test_no_good_key_no_answer(gateway: Gateway, headers: dict[str, str]) -> None:
    http = gateway.http()
    for path in ("/api/chat", "/v1/chat/completions"):
        response = http.post(path, headers=headers, json={"model": MODELS[0], "messages": []})
        is_error(response, 401, "unauthorized")
    is_error(http.get("/api/tags", headers=headers), 401, "unauthorized")
    is_error(http.get("/v1/models", headers=headers), 401, "unauthorized")


def test_expired_disabled_and_revoked_look_the_same(gateway: Gateway) -> None:
    bodies = set()
    for command in (None, "disable-key", "revoke-key"):
        client = gateway.client(None, *(("--expires", "1s") if command is None else ()))
        if command is None:
            import time

            time.sleep(1.1)
        else:
            gateway.paddock(command, client.prefix)
        response = refused_soon(client)
        is_error(response, 401, "unauthorized")
        bodies.add(re.sub(r'"request_id":"[^"]*"', "", response.text))
    assert len(bodies) == 1


def refused_soon(client: Client) -> httpx.Response:
    """A change takes effect within a second; the wait here allows for a busy machine."""
    import time

    deadline = time.monotonic() + 5
    while True:
        response = client.chat("hello")
        if response.status_code != 200 or time.monotonic() > deadline:
            return response
        time.sleep(0.05)


def test_either_header_presents_a_key_and_neither_reaches_the_upstream(gateway: Gateway, client: Client) -> None:
    http = gateway.http()
    response = http.post(
        "/api/chat",
        headers={"x-api-key": client.key, "cookie": "a=b", "x-goog-api-key": "g", "x-paddock-evil": "1"},
        json={"model": MODELS[0], "messages": [{"role": "user", "content": "hi"}], "stream": False},
    )
    assert response.status_code == 200
    (seen,) = [one for one in gateway.upstream.requests() if one["headers"].get("x-request-id") == request_id(response)]
    for name in ("authorization", "x-api-key", "cookie", "x-goog-api-key", "x-paddock-evil", "accept-encoding"):
        assert name not in seen["headers"]


# Response headers


def test_every_proxied_response_carries_the_headers(client: Client) -> None:
    responses = [
        client.chat("one two"),
        client.chat("one two", path="/v1/chat/completions"),
        client.http.get("/api/tags"),
        client.http.get("/v1/models"),
        client.http.post("/api/show", json={"model": MODELS[0]}),
        client.http.post("/api/embed", json={"model": "nomic-embed-text", "input": "x"}),
    ]
    for response in responses:
        assert response.status_code == 200, response.text
        request_id(response)
        for name in HEADERS:
            assert name in response.headers


def test_the_headers_count(gateway: Gateway) -> None:
    client = gateway.client(None, "--rpm", "50", "--tpm", "100000", "--budget-day", "5000", "--budget-month", "9000")
    first, second = client.chat("one two three"), client.chat("one two three")
    assert first.headers["x-ratelimit-limit-requests"] == "50"
    assert first.headers["x-ratelimit-remaining-requests"] == "49"
    assert second.headers["x-ratelimit-remaining-requests"] == "48"
    assert first.headers["x-ratelimit-limit-tokens"] == "100000"
    assert first.headers["x-budget-period"] == "day"
    assert first.headers["x-budget-tokens-remaining"] == "5000"
    used = 3 + 4
    assert second.headers["x-budget-tokens-remaining"] == str(5000 - used)
    assert second.headers["x-ratelimit-remaining-tokens"] == str(100000 - used)


def test_a_clients_own_request_id_is_replaced(client: Client) -> None:
    response = client.http.get("/api/tags", headers={"x-request-id": "mine"})
    assert request_id(response) != "mine"


# Error model


def test_malformed_body(client: Client) -> None:
    for body in (b"", b"{", b"[]", b'"x"', b'{"model":', b"\xff\xfe", b'{"model":"llama3.1:8b"} {}', b'{"model":NaN}'):
        is_error(client.http.post("/api/chat", content=body), 400, "bad_request")


def test_cap(gateway: Gateway) -> None:
    client = gateway.client(None, "--max-tokens", "10")
    assert client.chat("x", options={"num_predict": 10}).status_code == 200
    is_error(client.chat("x", options={"num_predict": 11}), 400, "bad_request")
    for path, name in (("/v1/chat/completions", "max_tokens"), ("/v1/chat/completions", "max_completion_tokens")):
        assert client.chat("x", path=path, **{name: 10}).status_code == 200
        is_error(client.chat("x", path=path, **{name: 11}), 400, "bad_request")


def test_an_absent_cap_is_set_upstream(gateway: Gateway) -> None:
    client = gateway.client(None, "--max-tokens", "4")
    words = "a b c d e f g h"
    native = client.chat(words)
    assert native.json()["done_reason"] == "length"
    assert native.json()["eval_count"] == 4
    openai = client.chat(words, path="/v1/chat/completions")
    assert openai.json()["choices"][0]["finish_reason"] == "length"
    assert openai.json()["usage"]["completion_tokens"] == 4
    newer = client.chat(words, path="/v1/chat/completions", max_completion_tokens=3)
    assert newer.json()["usage"]["completion_tokens"] == 3


def test_unpermitted_and_uninstalled_models_look_the_same(gateway: Gateway) -> None:
    client = gateway.client(gateway.tenant("--model", "llama3.1:8b"))
    assert client.chat("x").status_code == 200
    answers = set()
    for model in ("mistral:7b", "not-installed:1b", "MISTRAL:7B", "library/mistral:7b"):
        for path in ("/api/chat", "/v1/chat/completions"):
            response = client.chat("x", path=path, model=model)
            is_error(response, 403, "forbidden")
            answers.add((response.text.replace(request_id(response), ""), tuple(shape(response))))
        response = client.http.post("/api/show", json={"model": model})
        is_error(response, 403, "forbidden")
        answers.add((response.text.replace(request_id(response), ""), tuple(shape(response))))
        is_error(client.http.get(f"/v1/models/{model}"), 403, "forbidden")
    assert len(answers) == 1


def shape(response: httpx.Response) -> list[str]:
    """Header names and the values that may not differ."""
    return sorted(
        f"{name}: {value}" for name, value in response.headers.items() if name not in ("date", "x-request-id")
    )


def test_too_large(client: Client) -> None:
    response = client.chat("x" * 262_200)
    is_error(response, 413, "payload_too_large")
    assert client.chat("x" * 200_000).status_code == 200


def test_too_large_in_chunks(client: Client) -> None:
    def pieces() -> Any:
        for _ in range(64):
            yield b"x" * 8192

    is_error(client.http.post("/api/chat", content=pieces()), 413, "payload_too_large")


# Native endpoints


@pytest.mark.parametrize(("path", "fields"), [("/api/chat", None), ("/api/generate", "prompt")])
def test_native_stream(client: Client, path: str, fields: str | None) -> None:
    body: dict[str, Any] = {"model": MODELS[0]}
    body |= {"prompt": "Say hi"} if fields else {"messages": [{"role": "user", "content": "Say hi"}]}
    with client.http.stream("POST", path, json=body) as response:
        assert response.headers["content-type"].startswith("application/x-ndjson")
        objects = [json.loads(line) for line in response.iter_lines()]
    words = [one["response"] if fields else one["message"]["content"] for one in objects]
    assert "".join(words) == "Echo: Say hi"
    assert [one["done"] for one in objects] == [False] * (len(objects) - 1) + [True]
    assert (objects[-1]["prompt_eval_count"], objects[-1]["eval_count"]) == (2, 3)


def test_native_document(client: Client) -> None:
    document = client.chat("Say hi").json()
    assert document["message"]["content"] == "Echo: Say hi"
    assert document["done"] is True


def test_form_encoded_bodies_are_judged_as_ollama_reads_them(client: Client) -> None:
    """`curl -d` says that its JSON is a form; Ollama does not care."""
    response = client.http.post(
        "/api/generate",
        content=b'{"model":"llama3.1:8b","prompt":"x","stream":false}',
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert response.status_code == 200


@pytest.mark.parametrize(("path", "name"), [("/api/embed", "input"), ("/api/embeddings", "prompt")])
def test_embeddings(client: Client, path: str, name: str) -> None:
    response = client.http.post(path, json={"model": "nomic-embed-text", name: "hello world"})
    assert response.status_code == 200
    assert response.json()["embedding" if name == "prompt" else "embeddings"]


def test_tags(gateway: Gateway) -> None:
    everything = gateway.client().http.get("/api/tags").json()["models"]
    assert {one["name"] for one in everything} == set(MODELS)
    assert everything[0]["details"]["family"]
    some = gateway.client(gateway.tenant("--model", "mistral:7b", "--model", "gone:1b")).http.get("/api/tags")
    assert [one["name"] for one in some.json()["models"]] == ["mistral:7b"]
    none = gateway.client(gateway.tenant("--no-models")).http.get("/api/tags")
    assert none.json()["models"] == []


def test_show_is_kept_to_a_list(client: Client) -> None:
    shown = client.http.post("/api/show", json={"model": MODELS[0]})
    assert set(shown.json()) <= {"details", "capabilities", "modified_at", "model_info"}
    assert "operator-only" not in shown.text
    assert shown.json()["model_info"]["general.architecture"]


def test_version_is_the_gateways(gateway: Gateway) -> None:
    from importlib.metadata import version

    assert gateway.http().get("/api/version").json() == {"version": version("paddock")}


def test_heartbeat(gateway: Gateway) -> None:
    assert gateway.http().get("/").text == "Ollama is running"
    assert gateway.http().head("/").status_code == 200


# Hard-blocked endpoints


@pytest.mark.parametrize("name", BLOCKED)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "HEAD", "PUT", "OPTIONS", "PATCH"])
def test_blocked(gateway: Gateway, client: Client, name: str, method: str) -> None:
    response = client.http.request(method, f"/api/{name}")
    assert response.status_code == 403
    if method != "HEAD":
        is_error(response, 403, "forbidden")


def test_nothing_blocked_ever_reached_the_upstream(gateway: Gateway, client: Client) -> None:
    client.http.post("/api/pull", json={"model": MODELS[0]})
    paths = {one["path"] for one in gateway.upstream.requests()}
    assert not [path for path in paths if re.match(r"/api/(pull|push|create|copy|delete|blobs|ps)", path)]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/chat"),
        ("DELETE", "/api/tags"),
        ("POST", "/api/tags"),
        ("GET", "/nothing"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/audio/transcriptions"),
    ],
)
def test_whatever_else_there_is_does_not_exist(client: Client, method: str, path: str) -> None:
    is_error(client.http.request(method, path), 403, "forbidden")


# OpenAI-compatible endpoints


def test_openai_stream(client: Client) -> None:
    body = {"model": MODELS[0], "stream": True, "messages": [{"role": "user", "content": "Say hi"}]}
    with client.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks) == "Echo: Say hi"
    assert all(one["choices"] for one in chunks), "the usage chunk that the gateway asked for is hidden"


def test_openai_stream_with_usage_asked_for(client: Client) -> None:
    body = {
        "model": MODELS[0],
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "Say hi"}],
    }
    with client.http.stream("POST", "/v1/chat/completions", json=body) as response:
        chunks = [json.loads(line[6:]) for line in response.iter_lines() if line and line != "data: [DONE]"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def test_openai_models(gateway: Gateway, client: Client) -> None:
    listed = client.http.get("/v1/models").json()
    assert listed["object"] == "list"
    assert {one["id"] for one in listed["data"]} == set(MODELS)
    assert {one["object"] for one in listed["data"]} == {"model"}
    one = client.http.get("/v1/models/llama3.1:8b").json()
    assert set(one) == {"id", "object", "created", "owned_by"}


def test_openai_completions_and_embeddings(client: Client) -> None:
    completion = client.http.post("/v1/completions", json={"model": MODELS[0], "prompt": "Say hi"}).json()
    assert completion["choices"][0]["text"] == "Echo: Say hi"
    embedding = client.http.post("/v1/embeddings", json={"model": "nomic-embed-text", "input": ["a b", "c"]}).json()
    assert embedding["usage"]["prompt_tokens"] == 3


# Health endpoints


def test_health(gateway: Gateway) -> None:
    http = gateway.http()
    assert http.get("/healthz").json() == {"status": "ok"}
    ready = http.get("/readyz")
    assert ready.json() == {"status": "ok", "checks": {"postgresql": "ok", "redis": "ok", "ollama": "ok"}}
    metrics = http.get("/metrics")
    assert metrics.status_code == 200
    assert "paddock_" in metrics.text


# Errors of the upstream


@pytest.mark.parametrize(
    ("upstream", "status", "kind"),
    [
        (400, 400, "bad_request"),
        (404, 403, "forbidden"),
        (401, 502, "bad_gateway"),
        (500, 502, "bad_gateway"),
        (503, 503, "unavailable"),
    ],
)
def test_an_upstreams_error_is_cleaned(client: Client, upstream: int, status: int, kind: str) -> None:
    for path in ("/api/chat", "/v1/chat/completions"):
        response = client.chat(f"x !error-before={upstream}", path=path)
        assert response.status_code == status
        assert response.json()["error"]["type"] == kind
        assert set(response.json()) == {"error", "request_id"}
        assert "x-budget-period" in response.headers


def test_an_error_in_a_stream_is_cleaned(client: Client) -> None:
    lines = client.chat("x y z !error-after=2", stream=True).text.splitlines()
    assert json.loads(lines[-1]) == {"error": "upstream error"}
    events = client.chat("x y z !error-after=2", path="/v1/chat/completions", stream=True).text.split("\n\n")
    assert json.loads(events[-3].removeprefix("data: "))["error"]["type"] == "bad_gateway"
    assert events[-2] == "data: [DONE]"
