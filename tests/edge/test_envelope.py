"""Envelopes through the front door: opened, judged like any request, answered sealed, and counted once."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.harness import MODELS, eventually, request_id
from tests.sealing import PATH, chat, refused, seal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness import Gateway
    from tests.sealing import Sender


def test_a_chat(gateway: Gateway, sender: Callable[..., Sender]) -> None:
    one = sender()
    response = one.send(chat("one two three"))
    answer = one.open(response)
    assert answer["choices"][0]["message"]["content"] == "Echo: one two three"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    metadata = answer["_metadata"]
    assert metadata["security_tier"] == "standard"
    assert metadata["response_status"] == "success"
    assert metadata["memory_protection"]["core_dump_prevention"] is True
    assert response.headers["x-ratelimit-limit-requests"] == "unlimited"

    row = gateway.audit(request_id(response))
    assert (row["endpoint"], row["model"], row["decision"], row["outcome"]) == (PATH, MODELS[0], "allowed", "completed")
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (3, 4, False)
    (served,) = gateway.upstream.served(request_id(response))
    assert served["endpoint"] == "/v1/chat/completions"
    assert (served["prompt_tokens"], served["completion_tokens"]) == (3, 4)
    assert not served["credentials"]
    assert not {name for name in served["headers"] if name.startswith(("x-p", "x-s", "x-e"))}
    assert served["settings"] == {"max_tokens": 16384}


def test_tools_and_a_long_prompt(sender: Callable[..., Sender]) -> None:
    one = sender()
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    answer = one.open(one.send(chat("use the tool", tools=tools)))
    assert answer["choices"][0]["message"]["tool_calls"]
    long = one.open(one.send(chat("word " * 200_000)))  # a megabyte: more than a plain body may have here
    assert long["usage"]["prompt_tokens"] == 200_000


def test_it_counts_once(gateway: Gateway, sender: Callable[..., Sender]) -> None:
    one = sender("--rpm", "3")
    for left in ("2", "1", "0"):
        response = one.send(chat("x"))
        assert response.status_code == 200
        assert response.headers["x-ratelimit-remaining-requests"] == left
    refusal = one.send(chat("x"))
    refused(refusal, 429)
    assert 1 <= int(refusal.headers["retry-after"]) <= 60
    assert gateway.audit(request_id(refusal))["reason"] == "rate_requests"
    asked = "SELECT sum(requests)::int AS n FROM usage_daily u JOIN tenant t ON t.id = u.tenant_id WHERE t.name = $1"
    eventually(lambda: (gateway.sql(asked, one.client.tenant)[0]["n"] or 0) >= 3)
    assert gateway.sql(asked, one.client.tenant)[0]["n"] == 3


def test_what_is_inside_is_judged_like_any_request(gateway: Gateway, sender: Callable[..., Sender]) -> None:
    one = sender("--model", MODELS[0], "--max-tokens", "10", "--budget-day", "100")
    for body, status, reason in (
        (chat("x", model="mistral:7b"), 403, "model_not_available"),
        (chat("x", model="not-there"), 403, "model_not_available"),
        (chat("x", max_tokens=11), 400, "bad_request"),
        (chat("word " * 1000), 429, "budget_day"),
        (b"{", 400, "envelope_refused"),
        (b"[]", 400, "envelope_refused"),
        ({**chat("x"), "MODEL": "mistral:7b"}, 400, "envelope_refused"),
        ({"model": MODELS[0], "messages": []}, 400, "envelope_refused"),
        (chat("x", options={"num_ctx": 1}), 400, "envelope_refused"),
    ):  # fmt: skip
        response = one.send(body)
        refused(response, status)
        row = gateway.audit(request_id(response))
        assert (row["decision"], row["reason"], row["endpoint"]) == ("denied", reason, PATH)
        assert not gateway.upstream.served(request_id(response))
    capped = one.open(one.send(chat("a b c d e f g h i j k l")))
    assert capped["choices"][0]["finish_reason"] == "length"
    assert capped["usage"]["completion_tokens"] == 10


def test_a_reservation_stands_while_it_is_answered(gateway: Gateway, sender: Callable[..., Sender]) -> None:
    one = sender("--concurrency", "1")
    headers = one.headers()
    package = seal(chat("x !first=3000"), one.server).bytes_
    earlier = gateway.upstream.served()
    done: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: done.append(one.client.http.post(PATH, content=package, headers=headers)))
    thread.start()
    eventually(lambda: gateway.upstream.after(earlier, "running"))
    second = gateway.http(one.client.key).post(PATH, content=seal(chat("y"), one.server).bytes_, headers=one.headers())
    assert refused(second, 429)["detail"] == "too many concurrent requests"
    thread.join()
    assert done[0].status_code == 200


def test_the_key_comes_first(gateway: Gateway, sender: Callable[..., Sender]) -> None:
    one = sender()
    package = seal(chat("x"), one.server).bytes_
    for key in (None, "nz_wrong", "nz_" + "0" * 41):
        response = gateway.http(key).post(PATH, content=package, headers=one.headers())
        refused(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
    query = gateway.http(one.client.key).post(f"{PATH}?model=x", content=package, headers=one.headers())
    assert query.status_code == 400
    assert query.json()["detail"]
    encoded = one.post(package, content_encoding="gzip")
    assert encoded.status_code == 400
    assert encoded.json()["detail"]


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "DELETE"])
def test_other_methods_do_not_exist(gateway: Gateway, method: str) -> None:
    for path in (PATH, "/pki/public_key") if method != "GET" else (PATH,):
        assert gateway.http().request(method, path).status_code == 403


def test_an_upstream_that_fails(gateway: Gateway, sender: Callable[..., Sender]) -> None:
    one = sender()
    for control, status in (("!error-before=500", 502), ("!error-before=503", 503), ("!error-before=404", 403),
                            ("!error-after=1", 502), ("!die-after=1", 502)):  # fmt: skip
        response = one.send(chat(f"x {control}"))
        refused(response, status)
        assert ("retry-after" in response.headers) == (status == 503)
        row = gateway.audit(request_id(response))
        assert row["outcome"] == "upstream_error"
        assert row["prompt_tokens"] == row["completion_tokens"] == 0 or row["estimated"]


def test_a_client_that_leaves(gateway: Gateway, sender: Callable[..., Sender]) -> None:
    one = sender()
    assert one.send(chat("x")).status_code == 200  # its key is known now, which takes a while the first time
    with pytest.raises(httpx.ReadTimeout):
        one.client.http.post(
            PATH,
            content=seal(chat("x !first=20000"), one.server).bytes_,
            headers=one.headers(),
            timeout=httpx.Timeout(5, read=1.0),
        )
    query = "SELECT * FROM audit WHERE tenant = $1 AND outcome = 'aborted'"
    (row,) = eventually(lambda: gateway.sql(query, one.client.tenant))
    assert row["estimated"]
    assert row["completion_tokens"] > 0


def test_an_answer_longer_than_a_connection_holds(sender: Callable[..., Sender]) -> None:
    one = sender()
    answer = one.open(one.send(chat("x !tokens=16000")))
    assert answer["usage"]["completion_tokens"] == 16000


def test_many_at_once(sender: Callable[..., Sender]) -> None:
    """Many at once: the threads that open and seal mix nothing up."""
    one = sender()

    def ask(number: int) -> tuple[int, Any]:
        answer = one.open(one.send(chat(f"number {number}")))
        return number, answer["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(8) as pool:
        for number, content in pool.map(ask, range(40)):
            assert content == f"Echo: number {number}"


def test_nothing_of_it_is_written_anywhere(gateway: Gateway, sender: Callable[..., Sender]) -> None:
    marker = "quicksilver-marmot"
    one = sender("--model", MODELS[0])
    for body, more in (
        (chat(marker), {}),
        (chat(marker, model="mistral:7b"), {}),
        (chat(f"{marker} !error-before=500"), {}),
        (json.dumps({"model": MODELS[0], "messages": marker}).encode(), {}),
        (chat(marker, stream=True), {"x_envelope_stream": "1"}),
    ):
        sealed = seal(body, one.server)
        response = one.post(sealed.bytes_, **more)
        assert marker.encode() not in response.content
        assert marker not in str(response.headers)
        gateway.audit(request_id(response))
    for part in gateway.instance.pids():
        assert marker not in gateway.instance.log(part).read_text(errors="replace"), part
    store = gateway.redis()
    for key in store.scan_iter(count=1000):
        assert marker.encode() not in key + (store.dump(key) or b"")
    store.close()
    for path in (gateway.data_dir / "valkey").rglob("*"):
        assert not path.is_file() or marker.encode() not in path.read_bytes(), path
    for table in ("audit", "usage_daily", "api_key", "tenant"):
        assert not gateway.sql(f"SELECT 1 FROM {table} t WHERE t::text LIKE $1", f"%{marker}%")  # noqa: S608  # our own names
