"""Limits and budgets through the front door: a limit is a limit, also for many at once."""

from __future__ import annotations

import concurrent.futures
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.harness import MODELS, Client, eventually, request_id, text

if TYPE_CHECKING:
    from tests.harness import Gateway


def refused(response: httpx.Response, what: str, most: int = 60) -> int:
    """A 429 that names its limit, with the wait in whole seconds."""
    assert response.status_code == 429, response.text
    assert what in response.json()["error"]["message"]
    wait = int(response.headers["retry-after"])
    assert 1 <= wait <= most
    assert "x-ratelimit-limit-requests" in response.headers
    return wait


def at_once(gateway: Gateway, client: Client, count: int, **fields: Any) -> list[httpx.Response]:
    """The same chat, from `count` connections at the same time."""
    body = {"model": MODELS[0], "messages": [{"role": "user", "content": "one two"}], "stream": False, **fields}

    def one(_: int) -> httpx.Response:
        with httpx.Client(base_url=gateway.url, headers=client.http.headers, timeout=60, trust_env=False) as http:
            return http.post("/api/chat", json=body)

    with concurrent.futures.ThreadPoolExecutor(min(count, 64)) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize("of", ["key", "tenant"])
def test_requests_per_minute(gateway: Gateway, of: str) -> None:
    limits = ("--rpm", "3")
    client = gateway.client(None, *limits) if of == "key" else gateway.client(tenant_options=limits)
    answers = [client.chat("x") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0", "0"]
    refused(answers[-1], "requests per minute")
    listed = client.http.get("/api/tags")
    refused(listed, "requests per minute")


def test_requests_per_minute_for_many_at_once(gateway: Gateway) -> None:
    client = gateway.client(None, "--rpm", "20")
    statuses = [answer.status_code for answer in at_once(gateway, client, 60)]
    assert statuses.count(200) == 20
    assert statuses.count(429) == 40


def test_tokens_per_minute(gateway: Gateway) -> None:
    client = gateway.client(None, "--tpm", "300")
    statuses = []
    for _ in range(40):
        answer = client.chat("one two three four five !tokens=50", options={"num_predict": 50})
        statuses.append(answer.status_code)
        if answer.status_code == 429:
            refused(answer, "tokens per minute")
            break
    used = sum(one["prompt_tokens"] + one["completion_tokens"] for one in served(gateway, client))
    assert statuses[-1] == 429
    assert statuses.count(200) >= 2
    assert used <= 300


def served(gateway: Gateway, client: Client) -> list[dict[str, Any]]:
    """What the upstream did for a key, by way of its audit rows."""
    rows = gateway.sql("SELECT request_id FROM audit WHERE key_prefix = $1", client.prefix)
    wanted = {row["request_id"] for row in rows}
    return [one for one in gateway.upstream.served() if one["request_id"] in wanted]


def test_concurrency(gateway: Gateway) -> None:
    client = gateway.client(None, "--concurrency", "2")
    answers = at_once(gateway, client, 8, messages=[{"role": "user", "content": "x !first=1500"}])
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) == 2
    for answer in answers:
        if answer.status_code != 200:
            assert refused(answer, "concurrent") == 1
    assert client.chat("x").status_code == 200


@pytest.mark.parametrize(("period", "most"), [("day", 86400), ("month", 31 * 86400), ("total", 86400)])
def test_budgets(gateway: Gateway, period: str, most: int) -> None:
    client = gateway.client(None, f"--budget-{period}", "60")
    statuses = []
    for _ in range(30):
        answer = client.chat("one two three !tokens=10", options={"num_predict": 10})
        statuses.append(answer.status_code)
        if answer.status_code == 429:
            break
        assert answer.headers["x-budget-period"] == period
    assert statuses[-1] == 429
    assert statuses.count(200) >= 1
    assert answer.json()["error"]["type"] == "budget_exceeded"
    refused(answer, "budget", most)
    assert answer.headers["x-budget-period"] == period


def test_a_rotation_is_no_way_to_more(gateway: Gateway) -> None:
    """Old key and new one share limits and budgets, and what the old one used stays used."""
    client = gateway.client(None, "--rpm", "5", "--budget-total", "1000")
    spent = [client.chat("x !tokens=50") for _ in range(2)]
    assert [answer.headers["x-budget-tokens-remaining"] for answer in spent] == ["1000", "948"]
    made = gateway.paddock("rotate-key", client.prefix, "--grace", "1h")
    successor = Client(made["key"], made["prefix"], made["tenant"], gateway.http(made["key"]))
    first = successor.chat("x !tokens=50")
    assert first.headers["x-budget-tokens-remaining"] == "896"
    assert first.headers["x-ratelimit-remaining-requests"] == "2"
    assert client.chat("x !tokens=50").headers["x-budget-tokens-remaining"] == "844"
    gateway.audit(request_id(first))
    third = gateway.http(gateway.paddock("rotate-key", made["prefix"], "--grace", "0s")["key"])
    assert third.get("/api/tags").headers["x-budget-tokens-remaining"] == "792"
    refused(third.get("/api/tags"), "requests per minute")
    # Each has its own line in the report all the same.
    used = gateway.paddock("usage", "--by", "key", "--tenant", client.tenant)["rows"]
    assert {row["key_prefix"] for row in used} == {client.prefix, made["prefix"]}


def test_a_budget_that_pays_for_twenty(gateway: Gateway) -> None:
    """200 at once; each costs 12 tokens once it is settled, and more while it is reserved."""
    price = 2 + 10
    client = gateway.client(None, "--budget-total", str(20 * price))
    message = [{"role": "user", "content": "!tokens=10 !delay=5"}]
    answers = at_once(gateway, client, 200, messages=message, options={"num_predict": 10})
    granted = [answer for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert 1 <= len(granted) <= 20
    total = sum(answer.json()["prompt_eval_count"] + answer.json()["eval_count"] for answer in granted)
    assert total <= 20 * price


def test_what_is_left_is_given_where_no_cap_was_named(gateway: Gateway) -> None:
    client = gateway.client(None, "--budget-total", "40")
    answer = client.chat("x !tokens=500")
    assert answer.status_code == 200
    assert answer.json()["done_reason"] == "length"
    assert answer.json()["eval_count"] < 40
    assert client.chat("x", options={"num_predict": 1000}).status_code == 429


def test_the_tightest_binds(gateway: Gateway) -> None:
    tenant = gateway.tenant("--rpm", "100", "--budget-day", "100000")
    client = gateway.client(tenant, "--rpm", "5", "--budget-month", "5000")
    answer = client.chat("x")
    assert answer.headers["x-ratelimit-limit-requests"] == "5"
    assert (answer.headers["x-budget-period"], answer.headers["x-budget-tokens-remaining"]) == ("month", "5000")


def test_two_keys_share_their_tenants_limit(gateway: Gateway) -> None:
    tenant = gateway.tenant("--rpm", "4")
    first, second = gateway.client(tenant), gateway.client(tenant)
    statuses = [client.chat("x").status_code for client in (first, second, first, second, first, second)]
    assert statuses == [200, 200, 200, 200, 429, 429]


def test_changes_take_effect_within_a_second(gateway: Gateway) -> None:
    client = gateway.client()
    assert client.chat("x").headers["x-ratelimit-limit-requests"] == "unlimited"
    gateway.paddock("set-limits", "--key", client.prefix, "--rpm", "2")
    begun = time.monotonic()
    eventually(lambda: client.chat("x").headers["x-ratelimit-limit-requests"] == "2", every=0.02)
    assert time.monotonic() - begun < 10  # a second is promised; the machine may be busy
    gateway.paddock("set-limits", "--key", client.prefix, "--rpm", "none")
    eventually(lambda: client.chat("x").status_code == 200)


def test_a_refusal_has_its_row(gateway: Gateway) -> None:
    client = gateway.client(None, "--rpm", "1")
    client.chat("x")
    answer = client.chat("x")
    row = gateway.audit(request_id(answer))
    assert (row["status"], row["reason"], row["decision"]) == (429, "rate_requests", "denied")
    assert row["key_prefix"] == client.prefix


def test_counters_that_the_store_lost_are_rebuilt(gateway: Gateway) -> None:
    """The store forgets everything of one tenant; what it had used is still used."""
    client = gateway.client(None, "--budget-total", "1000")
    spent = client.chat("one two three !tokens=20", options={"num_predict": 20})
    used = spent.json()["prompt_eval_count"] + spent.json()["eval_count"]
    gateway.audit(request_id(spent))
    store = gateway.redis()
    key = gateway.sql("SELECT id, tenant_id FROM api_key WHERE prefix = $1", client.prefix)[0]
    ends = (f":k:{key['id']}", f":t:{key['tenant_id']}")
    gone = [name for name in map(text, store.keys("pd:*")) if name.endswith(ends)]
    assert gone
    store.delete(*gone)
    store.close()
    answer = client.chat("x")
    assert answer.headers["x-budget-tokens-remaining"] == str(1000 - used)
