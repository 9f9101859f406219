"""The encrypted stream through the front door: token by token, and never longer or shorter than it was made."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import statistics
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.harness import eventually, request_id
from tests.sealing import PATH, chat, refused, seal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from tests.harness import Gateway
    from tests.sealing import Sender

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "encrypted-clients" / "stream_client.py"


def example() -> ModuleType:
    """The client that the documentation ships: it checks everything that a receiver must check."""
    spec = importlib.util.spec_from_file_location("stream_client", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLIENT = example()


@contextlib.contextmanager
def streamed(one: Sender, body: dict[str, Any]) -> Iterator[tuple[httpx.Response, Any]]:
    """The answer as it comes, and what opens it."""
    payload_id = str(uuid.uuid4())
    sealed = seal(body, one.server)
    headers = one.headers(payload_id, x_envelope_stream="1")
    with one.client.http.stream("POST", PATH, content=sealed.bytes_, headers=headers) as response:
        yield response, CLIENT.StreamOpener(one.private, sealed.key, payload_id)


def whole(one: Sender, body: dict[str, Any]) -> tuple[bytes, dict[str, Any], str]:
    with streamed(one, body) as (response, opener):
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-envelope-stream"] == "1"
        plain = b"".join(piece for data in response.iter_raw() for piece in opener.feed(data))
        opener.close()
        return plain, json.loads(opener.metadata)["_metadata"], request_id(response)


@pytest.mark.parametrize("cut", ["", " !split", " !merge", " !crlf"])
@pytest.mark.parametrize("usage", [False, True])
def test_it_carries_the_plain_stream(gateway: Gateway, sender: Callable[..., Sender], cut: str, usage: bool) -> None:
    one = sender()
    body = chat(f"one two three{cut}", stream=True, **({"stream_options": {"include_usage": True}} if usage else {}))
    plain, metadata, identity = whole(one, body)
    through = one.client.http.post("/v1/chat/completions", json=body)
    assert masked(plain.decode()) == masked(through.text)
    assert metadata["response_status"] == "success"
    row = gateway.audit(identity)
    (served,) = gateway.upstream.served(identity)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (served["prompt_tokens"], served["completion_tokens"])
    assert not row["estimated"]
    assert row["ttft_us"] > 0


def masked(text: str) -> str:
    """Without what no two answers share."""
    return re.sub(r'"created":\d+', '"created":0', re.sub(r'"id":"[^"]*"', '"id":""', text))


def test_tokens_come_as_they_are_made(sender: Callable[..., Sender]) -> None:
    one = sender()
    arrivals: list[float] = []
    with streamed(one, chat("x !tokens=12 !delay=100", stream=True)) as (response, opener):
        for data in response.iter_raw():
            arrivals += [time.monotonic() for _ in opener.feed(data)]
        opener.close()
    assert len(arrivals) >= 12
    assert arrivals[-1] - arrivals[0] > 0.8


def test_the_first_token_is_as_soon_as_in_a_plain_stream(sender: Callable[..., Sender], record_property: Any) -> None:
    """Shown, and held to a ratio that a buffered answer could not meet on any machine: 20 tokens take 2 s."""
    one = sender()
    body = chat("x !first=200 !tokens=20 !delay=100", stream=True)

    def sealed() -> float:
        with streamed(one, body) as (response, opener):
            for data in response.iter_raw():
                if any(b'"content":"w' in piece for piece in opener.feed(data)):
                    return time.monotonic() - begin
        raise AssertionError("no token")

    def plain() -> float:
        with one.client.http.stream("POST", "/v1/chat/completions", json=body) as response:
            for data in response.iter_raw():
                if b'"content":"w' in data:
                    return time.monotonic() - begin
        raise AssertionError("no token")

    found: dict[str, list[float]] = {"sealed": [], "plain": []}
    for _ in range(5):
        for name, ask in (("sealed", sealed), ("plain", plain)):
            begin = time.monotonic()
            found[name].append(ask())
    first = {name: statistics.median(times) for name, times in found.items()}
    record_property("time_to_first_token", first)
    print(f"time to first token: {first['sealed'] * 1e3:.0f} ms sealed, {first['plain'] * 1e3:.0f} ms plain")
    assert first["sealed"] < 4 * first["plain"]


def test_both_must_say_so(sender: Callable[..., Sender]) -> None:
    one = sender()
    refused(one.send(chat("x", stream=True)))
    refused(one.send(chat("x"), x_envelope_stream="1"))
    refused(one.send(chat("x", stream=False), x_envelope_stream="1"))


def test_an_answer_that_breaks_off(gateway: Gateway, sender: Callable[..., Sender]) -> None:
    """Nothing an upstream does can look like a whole answer."""
    one = sender()
    with streamed(one, chat("x !tokens=9 !die-after=3", stream=True)) as (response, opener):
        with pytest.raises((httpx.HTTPError, CLIENT.StreamError)):
            for data in response.iter_raw():
                opener.feed(data)
            opener.close()
        assert not opener.finished
    assert gateway.audit(request_id(response))["estimated"]
    plain, _, identity = whole(one, chat("x !tokens=9 !error-after=3", stream=True))
    assert b'"error"' in plain  # the upstream ended it in good order: so the plain stream ends, with an error in it
    assert gateway.audit(identity)["outcome"] == "upstream_error"


def test_an_error_before_it_begins(sender: Callable[..., Sender]) -> None:
    one = sender()
    refused(one.send(chat("x !error-before=500", stream=True), x_envelope_stream="1"), 502)
    refused(one.send(chat("x", model="not-there", stream=True), x_envelope_stream="1"), 403)


def test_a_cap_ends_it_whole(gateway: Gateway, sender: Callable[..., Sender]) -> None:
    one = sender("--max-tokens", "5")
    plain, _, identity = whole(one, chat("x !tokens=50 !overrun", stream=True))
    assert plain.endswith(b"data: [DONE]\n\n")
    assert b'"finish_reason":"length"' in plain
    row = gateway.audit(identity)
    assert (row["outcome"], row["completion_tokens"]) == ("cut", 5)


def test_a_client_that_hangs_up_stops_the_upstream(gateway: Gateway, sender: Callable[..., Sender]) -> None:
    one = sender()
    with streamed(one, chat("x !tokens=2000 !delay=20", stream=True)) as (response, opener):
        for data in response.iter_raw():
            if opener.feed(data):
                break
    (served,) = eventually(
        lambda: [one for one in gateway.upstream.served(request_id(response)) if one["outcome"] != "running"]
    )
    assert served["outcome"] == "aborted"
    row = gateway.audit(request_id(response))
    assert row["estimated"]
    assert abs(row["completion_tokens"] - served["completion_tokens"]) < 25
