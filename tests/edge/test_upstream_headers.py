"""What an upstream says in headers ends at the gateway, save how its body is to be read: a proxy before Ollama names
its machines there, and a hostile one would speak to browsers in the gateway's name."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.edge.visitors import visit
from tests.harness import MODELS
from tests.harness import running as gateways
from tests.sealing import chat, refused, senders

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Client, Gateway

SAID = {
    "set-cookie": "a=b", "location": "http://10.0.0.5:11434/", "x-ollama-home": "/root/.ollama", "refresh": "0; url=/x",
    "www-authenticate": 'Basic realm="inside"', "access-control-allow-origin": "*", "x-ratelimit-reset": "9",
    "access-control-allow-credentials": "true", "content-security-policy": "default-src *", "retry-after": "9999",
    "clear-site-data": "*", "strict-transport-security": "max-age=9", "link": "</x>; rel=preload",
    "x-request-id": "theirs",
}  # fmt: skip
OWN = {"content-security-policy", "x-request-id"}  # names that an answer of the gateway's has, too
PATHS = ("/api/chat", "/api/generate", "/api/embed", "/v1/chat/completions", "/v1/completions", "/v1/embeddings")


@pytest.fixture(scope="module", params=["envoy", "processor"])
def talkative(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateways(tmp_path_factory.mktemp("talkative"), metering=request.param) as gateway:
        httpx.put(f"{gateway.upstream.url}/__demo/headers", json=list(SAID.items())).raise_for_status()
        said = httpx.get(f"{gateway.upstream.url}/api/version").headers
        assert said.items() >= SAID.items()
        yield gateway


@pytest.fixture(scope="module")
def client(talkative: Gateway) -> Client:
    return talkative.client()


def clean(response: httpx.Response, status: int = 200) -> None:
    assert response.status_code == status, response.text
    for name, value in SAID.items():
        assert response.headers.get(name) != value
        assert name in OWN or name not in response.headers
    twice = [name for name, count in Counter(name for name, _ in response.headers.multi_items()).items() if count > 1]
    assert twice == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_of_what_is_metered(client: Client, path: str, stream: bool) -> None:
    body: dict[str, Any] = {"model": MODELS[0], "stream": stream}
    if "embed" in path:
        body |= {"model": MODELS[2], "input": "one two"}
        del body["stream"]
    elif "chat" in path:
        body["messages"] = [{"role": "user", "content": "one two"}]
    else:
        body["prompt"] = "one two"
    clean(client.http.post(path, json=body))


def test_of_descriptions(client: Client) -> None:
    clean(client.http.post("/api/show", json={"model": MODELS[0]}))
    clean(client.http.get(f"/v1/models/{MODELS[0]}"))


@pytest.mark.parametrize(("status", "becomes"), [(401, 502), (404, 403), (400, 400), (500, 502)])
def test_of_errors(client: Client, status: int, becomes: int) -> None:
    clean(client.chat(f"a !error-before={status}"), becomes)


def test_a_busy_upstream_does_not_say_when(client: Client) -> None:
    response = client.chat("a !error-before=503")
    assert (response.status_code, response.headers.get_list("retry-after")) == (503, ["1"])


def test_of_what_a_session_asks(talkative: Gateway) -> None:
    visitor = visit(talkative, talkative.tenant())
    response = visitor.ask()
    assert response.headers.get_list("access-control-allow-origin") == [visitor.origin]
    assert "access-control-allow-credentials" not in response.headers
    assert not {"set-cookie", "clear-site-data", "x-ollama-home"} & set(response.headers)


@pytest.mark.parametrize("stream", [False, True])
def test_of_envelopes(talkative: Gateway, stream: bool) -> None:
    extra = {"x-envelope-stream": "1"} if stream else {}
    clean(senders(talkative)().send(chat("one two", stream=stream), **extra))


def test_a_refused_envelope_says_nothing_twice(talkative: Gateway) -> None:
    response = senders(talkative)("--rpm", "60").send(chat("one two", stream=True))
    refused(response)
    clean(response, 400)
    assert response.headers["x-ratelimit-remaining-requests"] == "59"
