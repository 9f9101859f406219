"""Streams through the front door: chunk by chunk, byte for byte, and stopped when nobody listens."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.harness import MODELS, eventually, request_id

if TYPE_CHECKING:
    from tests.harness import Client, Gateway


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Client:
    return gateway.client()


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODELS[0], "messages": [{"role": "user", "content": text}], "stream": True, **fields}


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_chunks_arrive_as_they_are_made(client: Client, path: str) -> None:
    arrivals: list[float] = []
    with client.http.stream("POST", path, json=body("x !tokens=12 !delay=100")) as response:
        arrivals.extend(time.monotonic() for _ in response.iter_raw())
    assert len(arrivals) >= 10, "several tokens came in one piece"
    # A buffered answer would come all at once; a slow machine only makes the gaps longer.
    assert arrivals[-1] - arrivals[0] > 0.8


@pytest.mark.parametrize(
    "path", ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/api/embed"]
)
@pytest.mark.parametrize("cut", ["", " !split", " !merge", " !crlf"])
def test_the_answer_is_what_ollama_said(gateway: Gateway, client: Client, path: str, cut: str) -> None:
    """The same request straight to the upstream: but for what differs by nature, the bytes are the same."""
    text = f"these words come back{cut}"
    request: dict[str, Any] = {"model": MODELS[0], "stream": True}
    if path == "/api/embed":
        request = {"model": "nomic-embed-text", "input": text}
    elif "chat" in path:
        request["messages"] = [{"role": "user", "content": text}]
    else:
        request["prompt"] = text
    if path.startswith("/v1"):
        request["stream_options"] = {"include_usage": True}
    direct = httpx.post(f"{gateway.upstream.url}{path}", json=request)
    through = client.http.post(path, json=request)
    assert through.status_code == direct.status_code == 200
    assert masked(through.text) == masked(direct.text)
    assert through.headers["content-type"] == direct.headers["content-type"]


def masked(text: str) -> str:
    """Without what no two answers share: ids, times, durations."""
    import re

    text = re.sub(r'"(created_at|id|system_fingerprint)":"[^"]*"', r'"\1":"…"', text)
    return re.sub(r'"(created|\w*_duration)":\d+', r'"\1":0', text)


def test_a_client_that_hangs_up_stops_the_upstream(gateway: Gateway, client: Client) -> None:
    with client.http.stream("POST", "/api/chat", json=body("x !tokens=2000 !delay=20")) as response:
        next(response.iter_lines())
        left = time.monotonic()
    served = eventually(
        lambda: [one for one in gateway.upstream.served(request_id(response)) if one["outcome"] != "running"],
        patience=20,
    )
    assert served[0]["outcome"] == "aborted"
    assert time.monotonic() - left < 20  # of the 40 that it would take
    assert served[0]["completion_tokens"] < 1000
    row = gateway.audit(request_id(response))
    assert row["estimated"]
    assert abs(row["completion_tokens"] - served[0]["completion_tokens"]) < 25
    assert row["outcome"] == "aborted"


def test_a_long_body_and_a_long_answer(client: Client) -> None:
    response = client.chat("word " * 40_000)
    assert response.status_code == 200
    assert response.json()["prompt_eval_count"] == 40_000


def test_many_streams_at_once(gateway: Gateway, client: Client) -> None:
    import concurrent.futures

    def one(number: int) -> tuple[int, str]:
        with httpx.Client(base_url=gateway.url, headers=client.http.headers, timeout=30, trust_env=False) as http:
            answer = http.post("/api/chat", json=body(f"number {number} !delay=5")).text
        words = [json.loads(line)["message"]["content"] for line in answer.splitlines()]
        return number, "".join(words)

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        for number, answer in pool.map(one, range(60)):
            assert answer == f"Echo: number {number}"
