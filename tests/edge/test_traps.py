"""The ways around a naive gateway, each tried through the front door. The numbers are those of the list of traps."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import MODELS, eventually, request_id

if TYPE_CHECKING:
    import httpx

    from tests.harness import Client, Gateway

FORBIDDEN = "mistral:7b"


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Client:
    """It may use one model, and one completion may have ten tokens."""
    return gateway.client(gateway.tenant("--model", MODELS[0], "--max-tokens", "10"))


def refused(gateway: Gateway, response: httpx.Response, status: int = 400) -> None:
    """Refused, and the upstream never saw it."""
    assert response.status_code == status, response.text
    if "x-request-id" in response.headers:
        seen = [one["headers"].get("x-request-id") for one in gateway.upstream.requests()]
        assert request_id(response) not in seen


@pytest.mark.parametrize(
    "extra",
    [
        '"MODEL":"mistral:7b"',
        '"Model":"mistral:7b"',
        '"model":"mistral:7b"',
        '"mode\\u006c":"mistral:7b"',
        '"option\\u017f":{"num_predict":100000}',
        '"option\u017f":{"num_predict":100000}',
        '"me\u017f\u017fages":[]',
        '"options":{"num_predict":5,"NUM_PREDICT":100000}',
        '"options":{"num_predict":5,"num_predict":100000}',
        '"options":{"num_pred\\u0131ct":5,"num_predi\u0063t":100000}',
    ],
)
def test_1_names_that_fold_together(gateway: Gateway, client: Client, extra: str) -> None:
    body = f'{{"model":"{MODELS[0]}","messages":[{{"role":"user","content":"x"}}],{extra}}}'
    response = client.http.post("/api/chat", content=body.encode())
    if response.status_code == 200:  # a name that Go does not fold onto a known one is nobody's business
        assert "\\u0131" in extra
        pytest.fail("a cap was passed over")
    refused(gateway, response)


@pytest.mark.parametrize("name", ["max_to\u212aens", "MAX_TOKENS", "max_token\u017f"])
def test_1_openai_names_that_fold_together(gateway: Gateway, client: Client, name: str) -> None:
    body = {"model": MODELS[0], "messages": [{"role": "user", "content": "x"}], "max_tokens": 5, name: 100000}
    refused(gateway, client.http.post("/v1/chat/completions", content=json.dumps(body, ensure_ascii=False).encode()))


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"llama3.1:8b","messages":[]} {"model":"mistral:7b"}',
        b'{"model":"llama3.1:8b","messages":[]}]',
        b'{"model":"llama3.1:8b","messages":[],"options":{"temperature":NaN}}',
        b'{"model":"llama3.1:8b","messages":[],"options":{"temperature":Infinity}}',
        b'{"model":"llama3.1:8b","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"llama3.1:8b","messages":[{"role":"user","content":"\xff"}]}',
        b'\xef\xbb\xbf{"model":"llama3.1:8b","messages":[]}',
        b'{"model":"llama3.1:8b","messages":[],}',
        b"{'model':'llama3.1:8b'}",
        b'{"model":"llama3.1:8b","messages":' + b"[" * 50000 + b"]" * 50000 + b"}",
        b'{"model":"llama3.1:8b","messages":[],"options":{"seed":' + b"9" * 100000 + b"}}",
    ],
    ids=range(11),
)
def test_2_not_one_strict_json_object(gateway: Gateway, client: Client, body: bytes) -> None:
    refused(gateway, client.http.post("/api/chat", content=body))


def test_3_the_content_type_decides_nothing(gateway: Gateway, client: Client) -> None:
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", "image/png"):
        body = json.dumps({"model": FORBIDDEN, "messages": [{"role": "user", "content": "x"}]})
        refused(gateway, client.http.post("/api/chat", content=body, headers={"content-type": kind}), 403)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_4_compressed_bodies(gateway: Gateway, client: Client, path: str) -> None:
    body = gzip.compress(json.dumps({"model": FORBIDDEN, "messages": []}).encode())
    for encoding in ("gzip", "GZIP", "identity, gzip", "x-gzip", "zstd"):
        refused(gateway, client.http.post(path, content=body, headers={"content-encoding": encoding}))


@pytest.mark.parametrize("query", ["?model=mistral:7b", "?", "?x=1&model=mistral:7b"])
def test_5_query_strings(gateway: Gateway, client: Client, query: str) -> None:
    for path in ("/api/chat", "/v1/chat/completions", "/api/generate", "/api/show"):
        url = f"{gateway.url}{path}{query}"
        response = client.http.post(url, json={"model": MODELS[0], "messages": []})
        if query == "?":  # the client may have dropped the empty query
            assert response.status_code in (200, 400)
        else:
            refused(gateway, response)


@pytest.mark.parametrize(
    "name",
    [
        "MISTRAL:7B",
        " mistral:7b",
        "mistral:7b ",
        "library/mistral:7b",
        "registry.ollama.ai/library/mistral:7b",
        "https://registry.ollama.ai/library/mistral:7b",
        "http://registry.ollama.ai/mistral:7b",
        "registry.ollama.ai/mistral:7b",
    ],
)
def test_6_one_model_has_many_names(gateway: Gateway, client: Client, name: str) -> None:
    for path in ("/api/chat", "/v1/chat/completions"):
        response = client.chat("x", path=path, model=name)
        assert response.status_code in (400, 403)
        refused(gateway, response, response.status_code)


def test_6_the_permitted_model_answers_to_its_other_names(gateway: Gateway) -> None:
    other = gateway.client(gateway.tenant("--model", "nomic-embed-text"))
    for name in ("nomic-embed-text", "nomic-embed-text:latest", "NOMIC-embed-text", "library/nomic-embed-text"):
        assert other.http.post("/api/embed", json={"model": name, "input": "x"}).status_code == 200


def test_7_cloud_models_need_to_be_named(gateway: Gateway) -> None:
    client = gateway.client()
    for name in ("llama3.1:cloud", "llama3.1:8b-cloud", "gpt-oss:120b-cloud"):
        refused(gateway, client.chat("x", model=name), 403)


def test_8_private_fields(gateway: Gateway, client: Client) -> None:
    refused(gateway, client.chat("x", _debug_render_only=True))
    refused(gateway, client.chat("x", path="/v1/chat/completions", _anything=1))


@pytest.mark.parametrize(
    "fields",
    [
        {"keep_alive": -1},
        {"keep_alive": "-5m"},
        {"keep_alive": 0, "messages": []},
        {"options": {"num_ctx": 1000000}},
        {"options": {"num_gpu": 0}},
        {"options": {"num_thread": 1}},
        {"options": {"use_mmap": False}},
        {"options": {"main_gpu": 1}},
        {"options": {"num_batch": 1}},
    ],
    ids=str,
)
def test_9_what_belongs_to_the_operator(gateway: Gateway, client: Client, fields: dict[str, Any]) -> None:
    refused(gateway, client.chat("x", **fields))


def test_10_every_name_of_the_cap(gateway: Gateway, client: Client) -> None:
    refused(gateway, client.chat("x", options={"num_predict": 11}))
    refused(gateway, client.chat("x", path="/v1/chat/completions", max_tokens=11))
    refused(gateway, client.chat("x", path="/v1/chat/completions", max_completion_tokens=11))
    refused(gateway, client.chat("x", path="/v1/chat/completions", max_tokens=5, max_completion_tokens=11))
    long = "a b c d e f g h i j k l m n o p"
    for unlimited in (-1, -2):
        assert client.chat(long, options={"num_predict": unlimited}).json()["eval_count"] == 10
    assert client.chat(long, options={}).json()["eval_count"] == 10
    assert client.chat(long, options=None).json()["eval_count"] == 10
    assert client.chat(long, path="/v1/chat/completions", max_tokens=None).json()["usage"]["completion_tokens"] == 10


def test_11_bounds(gateway: Gateway, client: Client) -> None:
    refused(gateway, client.chat("x", options={"stop": ["s"] * 1000}))
    refused(gateway, client.http.post("/api/embed", json={"model": MODELS[0], "input": ["x"] * 10000}))
    deep: dict[str, object] = {"type": "string"}
    for _ in range(60):
        deep = {"type": "object", "properties": {"a": deep}}
    refused(gateway, client.chat("x", format=deep))
    refused(gateway, client.chat("x", format={"type": "array", "items": {"type": "string"}, "minItems": 10**9}))


def test_12_credentials_stay_here(gateway: Gateway, client: Client) -> None:
    response = client.http.post(
        "/api/chat",
        headers={"cookie": "s=1", "x-goog-api-key": "k", "proxy-authorization": "Basic eDp5"},
        json={"model": MODELS[0], "messages": [{"role": "user", "content": "x"}], "stream": False},
    )
    assert response.status_code == 200
    (seen,) = [one for one in gateway.upstream.requests() if one["headers"].get("x-request-id") == request_id(response)]
    assert not {"authorization", "x-api-key", "cookie", "x-goog-api-key", "proxy-authorization"} & set(seen["headers"])


def test_11_a_tenant_may_have_bounds_of_its_own(gateway: Gateway) -> None:
    """Wider or narrower, for all of its keys, within a second; and for nobody else."""
    client, other = gateway.client(), gateway.client()
    texts = {"model": MODELS[2], "input": ["x"] * 2049}
    refused(gateway, client.http.post("/api/embed", json=texts))
    refused(gateway, client.chat("x", options={"num_ctx": 8192}))
    changes = ("inputs=3_000", "operator-options=num_ctx", "stop=1")
    told = gateway.paddock("set-bounds", client.tenant, *changes)
    assert told["differing"] == ["inputs", "operator_options", "stop"]
    eventually(lambda: client.http.post("/api/embed", json=texts).status_code == 200, patience=10)
    assert client.chat("x", options={"num_ctx": 8192, "stop": ["s"]}).status_code == 200
    refused(gateway, client.chat("x", options={"stop": ["s", "t"]}))
    refused(gateway, client.chat("x", options={"num_gpu": 1}))
    refused(gateway, other.http.post("/api/embed", json=texts))
    refused(gateway, other.chat("x", options={"num_ctx": 8192}))
    gateway.paddock("set-bounds", client.tenant, *(f"{change.partition('=')[0]}=usual" for change in changes))
    eventually(lambda: client.chat("x", options={"num_ctx": 8192}).status_code == 400, patience=10)
