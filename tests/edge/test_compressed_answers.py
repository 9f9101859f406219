"""An upstream that compresses though nobody asked: Envoy's meter decompresses it, and reads and edits it as any answer.
That the figures are right, in both modes of metering, is in `test_metering.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import MODELS, request_id

if TYPE_CHECKING:
    import httpx

    from tests.harness import Client, Gateway

PATHS = ("/api/chat", "/v1/chat/completions")


def ask(client: Client, path: str, text: str, *, stream: bool = True, **fields: Any) -> httpx.Response:
    content = [{"role": "user", "content": f"{text} !gzip-always"}]
    return client.http.post(path, json={"model": MODELS[0], "messages": content, "stream": stream, **fields})


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Client:
    return gateway.client()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
def test_the_client_gets_it_as_it_asked_for_it(client: Client, path: str, stream: bool) -> None:
    response = ask(client, path, "one two three", stream=stream)
    assert "content-encoding" not in response.headers
    assert all(word in response.text for word in ("one", "two", "three"))
    if not stream:
        assert int(response.headers["content-length"]) == len(response.content)


@pytest.mark.parametrize("path", PATHS)
def test_it_is_cut_at_its_cap(gateway: Gateway, client: Client, path: str) -> None:
    cap = {"options": {"num_predict": 5}} if path.startswith("/api") else {"max_tokens": 5}
    response = ask(client, path, "x !overrun !tokens=30", **cap)
    row = gateway.audit(request_id(response))
    assert (row["outcome"], 5 <= row["completion_tokens"] <= 6) == ("cut", True)
    assert "w9" not in response.text


@pytest.mark.parametrize("path", PATHS)
def test_an_error_in_it_is_in_our_words(gateway: Gateway, client: Client, path: str) -> None:
    response = ask(client, path, "a b c d !error-after=2")
    row = gateway.audit(request_id(response))
    assert (row["completion_tokens"], row["outcome"]) == (2, "upstream_error")
    assert "upstream error" in response.text


def test_usage_is_kept_from_those_who_did_not_ask(client: Client) -> None:
    path = "/v1/chat/completions"
    assert '"usage"' not in ask(client, path, "one two").text
    assert '"usage"' in ask(client, path, "one two", stream_options={"include_usage": True}).text


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_answer_that_is_damaged_is_an_error(gateway: Gateway, client: Client, path: str) -> None:
    cap = {"options": {"num_predict": 99}} if path.startswith("/api") else {"max_tokens": 99}
    content = [{"role": "user", "content": "a secret of the upstream !claim-gzip"}]
    response = client.http.post(path, json={"model": MODELS[0], "messages": content, "stream": False, **cap})
    row = gateway.audit(request_id(response))
    assert (row["outcome"], row["completion_tokens"], row["estimated"]) == ("unreadable", 99, True)
    assert "secret" not in response.text
    assert response.json()["error"]
