"""`paddock usage` and `paddock audit` beside a whole gateway: what they say is what the upstream counted."""

from __future__ import annotations

import csv
import io
import json
import threading
from argparse import ArgumentTypeError
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway import cli, reports
from tests.harness import MODELS, eventually, request_id

if TYPE_CHECKING:
    from tests.harness import Client, Gateway

Figures = dict[str, int]


def command(gateway: Gateway, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints; its status must be 0."""
    capsys.readouterr()
    assert cli.main([*arguments, "--data-dir", str(gateway.data_dir)]) == 0
    return capsys.readouterr().out


def usage(gateway: Gateway, *arguments: str, requests: int) -> dict[str, Any]:
    """The usage report, once it holds that many requests."""

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = gateway.paddock("usage", "--since", "1d", *arguments)
        return found if found["total"]["requests"] >= requests else None

    return eventually(look)


def served(gateway: Gateway, ids: list[str]) -> Figures:
    """What the upstream counted for these requests."""
    ones = [one for one in gateway.upstream.served() if one["request_id"] in ids]
    assert len(ones) == len(ids)
    prompt = sum(one["prompt_tokens"] for one in ones)
    completion = sum(one["completion_tokens"] for one in ones)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def subset(row: dict[str, Any], names: Figures) -> Figures:
    return {name: row[name] for name in names}


def mixed(client: Client) -> list[str]:
    """Five requests in four dialects; their ids."""
    answers = [
        client.chat("why is the sky blue"),
        client.chat("one two three four", stream=True),
        client.chat("an answer over openai", path="/v1/chat/completions", stream=True),
        client.http.post("/api/generate", json={"model": "mistral:7b", "prompt": "a b c", "stream": False}),
        client.http.post("/api/embed", json={"model": "nomic-embed-text", "input": ["hello", "wide world"]}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 5, [answer.text for answer in answers]
    return [request_id(answer) for answer in answers]


def test_usage_is_what_the_upstream_counted(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    tenant = gateway.tenant()
    first, second = gateway.client(tenant), gateway.client(tenant)
    ids = {first.prefix: mixed(first), second.prefix: mixed(second)}
    everything = served(gateway, ids[first.prefix] + ids[second.prefix])

    report = usage(gateway, "--tenant", tenant, requests=10)
    assert report["by"] == ["tenant", "model"]
    assert [row["model"] for row in report["rows"]] == ["llama3.1:8b", "mistral:7b", "nomic-embed-text:latest"]
    assert [row["requests"] for row in report["rows"]] == [6, 2, 2]
    assert subset(report["total"], everything) == everything
    assert report["total"]["estimated_requests"] == 0
    assert report["rows"][2]["completion_tokens"] == 0
    assert report["total"]["load_seconds"] > 0

    by_key = usage(gateway, "--tenant", tenant, "--by", "key,day", requests=10)
    today = datetime.now(UTC).date()
    assert {row["key_prefix"] for row in by_key["rows"]} == {first.prefix, second.prefix}
    assert {row["day"] for row in by_key["rows"]} <= {today.isoformat(), (today - timedelta(1)).isoformat()}
    one = usage(gateway, "--key", first.prefix, "--by", "key", requests=5)
    own = served(gateway, ids[first.prefix])
    assert subset(one["rows"][0], own) == own

    which = ("usage", "--since", "1d", "--tenant", tenant)
    text = command(gateway, capsys, *which, "--by", "model", "--by", "key", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0])[:3] == ["model", "key_prefix", "requests"]
    assert sum(int(row["total_tokens"]) for row in rows) == everything["total_tokens"]

    lines = command(gateway, capsys, *which).splitlines()
    assert lines[0].startswith("Used from ")
    assert lines[2].split()[:4] == ["TENANT", "MODEL", "REQUESTS", "PROMPT"]
    assert lines[-1].split()[:5] == ["total", "10", *(f"{number:,}" for number in everything.values())]
    assert len({len(line) for line in lines[2:]}) == 1  # the figures end in one column


def test_usage_of_other_times_is_not_in_it(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    client = gateway.client()
    client.chat("hello")
    usage(gateway, "--tenant", client.tenant, requests=1)
    past = gateway.paddock("usage", "--tenant", client.tenant, "--since", "2020-01-01", "--until", "2020-01-31")
    assert (past["rows"], past["total"]["requests"], past["since"]) == ([], 0, "2020-01-01")
    arguments = ("usage", "--tenant", client.tenant, "--until", "2020-02-10")
    assert command(gateway, capsys, *arguments) == "Used from 2020-02-01 to 2020-02-10 (UTC days)\n\nNothing.\n"


def test_the_audit_row_of_an_answer(gateway: Gateway) -> None:
    client = gateway.client()
    answer = client.chat("why is the sky blue", stream=True)
    row = gateway.paddock("audit", "--request-id", request_id(answer))
    (one,) = gateway.upstream.served(request_id(answer))
    expected = {
        "request_id": request_id(answer),
        "tenant": client.tenant,
        "key_prefix": client.prefix,
        "model": "llama3.1:8b",
        "method": "POST",
        "endpoint": "/api/chat",
        "status": 200,
        "decision": "allowed",
        "reason": "allowed",
        "outcome": "completed",
        "prompt_tokens": one["prompt_tokens"],
        "completion_tokens": one["completion_tokens"],
        "estimated": False,
        "bytes_out": len(answer.content),
        "address": "127.0.0.1",
        "flags": [],
        "requests": 1,
    }
    assert {name: row[name] for name in expected} == expected
    assert row["load_ms"] == pytest.approx(one["load_duration"] / 1e6, abs=0.001)
    assert row["eval_ms"] == pytest.approx(one["eval_duration"] / 1e6, abs=0.001)
    assert 0 < row["first_token_ms"] <= row["duration_ms"]
    assert 0 < row["upstream_ms"] <= row["duration_ms"]
    age = datetime.now(UTC) - datetime.fromisoformat(row["time"])
    assert timedelta() < age < timedelta(minutes=1)


def test_the_audit_row_of_each_refusal(gateway: Gateway) -> None:
    client = gateway.client(None, "--model", "mistral:7b", tenant_options=("--no-models",))
    anybody = gateway.http()
    refusals = {
        request_id(answer): (answer.status_code, reason, tenant)
        for answer, reason, tenant in (
            (client.chat("hi"), "model_not_available", client.tenant),
            (client.chat("hi", model=7), "bad_request", client.tenant),
            (anybody.get("/api/tags"), "key_missing", ""),
            (anybody.get("/api/tags", headers={"x-api-key": "nz_zzz"}), "key_malformed", ""),
            (anybody.post("/api/pull", json={"model": "llama3.1:8b"}), "endpoint_blocked", ""),
            (client.http.post("/api/chat", content=b" " * 300_000), "too_large", ""),
        )
    }
    for identity, (status, reason, tenant) in refusals.items():
        row = gateway.paddock("audit", "--request-id", identity)
        assert (row["decision"], row["reason"], row["status"]) == ("denied", reason, status)
        assert row["tenant"] == tenant
        assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (0, 0, False)


def test_requests_whose_client_left_before_an_answer_can_be_asked_for(gateway: Gateway) -> None:
    client = gateway.client()
    client.chat("the key is proven")
    body = {"model": MODELS[0], "messages": [{"role": "user", "content": "x !first=5000"}]}
    with pytest.raises(httpx.ReadTimeout):
        client.http.post("/api/chat", json=body, timeout=0.7)
    wanted = ("audit", "--tenant", client.tenant, "--status", "0")
    (row,) = eventually(lambda: gateway.paddock(*wanted), patience=20)
    assert (row["status"], row["outcome"]) == (0, "aborted")


def test_a_list_and_what_narrows_it(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    client = gateway.client()
    good = [request_id(client.chat(f"number {number}")) for number in range(3)]
    bad = request_id(client.chat("hello", model="absent:1b"))
    unmetered = request_id(client.http.get("/api/tags"))
    for identity in (*good, bad, unmetered):
        gateway.paddock("audit", "--request-id", identity)

    def ids(*arguments: str) -> list[str]:
        return [row["request_id"] for row in gateway.paddock("audit", "--tenant", client.tenant, *arguments)]

    assert ids() == [unmetered, bad, *reversed(good)]
    assert ids("--status", "403") == [bad]
    assert ids("--reason", "model_not_available") == [bad]
    assert ids("--reason", "completed") == good[::-1]
    assert ids("--reason", "allowed") == [unmetered, *reversed(good)]
    assert ids("--model", "LLAMA3.1:8b") == good[::-1]
    assert ids("--key", client.prefix, "--limit", "2") == [unmetered, bad]
    assert ids("--until", "2020-01-01") == []
    assert ids("--since", "1h") == ids()
    tags = gateway.paddock("audit", "--request-id", unmetered)
    assert (tags["endpoint"], tags["tenant"], tags["prompt_tokens"]) == ("/api/tags", client.tenant, 0)

    capsys.readouterr()
    lines = command(gateway, capsys, "audit", "--tenant", client.tenant).splitlines()
    assert lines[0].split()[:3] == ["TIME", "STATUS", "TENANT"]
    assert [line.split()[-1] for line in lines[1:]] == ids()
    assert cli.main(["audit", "--tenant", client.tenant, "--limit", "1", "--data-dir", str(gateway.data_dir)]) == 0
    assert "the newest 1" in capsys.readouterr().err
    assert "model_not_available" in command(gateway, capsys, "audit", "--request-id", bad)


def test_a_request_under_way_is_waited_for(gateway: Gateway) -> None:
    client = gateway.client()
    client.chat("hello")  # the key is proven
    found: dict[str, Any] = {}
    body = {"model": "llama3.1:8b", "messages": [{"role": "user", "content": "a !tokens=20 !delay=100"}]}
    with client.http.stream("POST", "/api/chat", json=body) as answer:
        identity = request_id(answer)
        early = eventually(lambda: recent_row(gateway, client, identity))
        assert (early["decision"], early["status"], early["completion_tokens"]) == ("allowed", None, None)
        waiting = threading.Thread(
            target=lambda: found.update(gateway.paddock("audit", "--request-id", identity, "--wait", "30"))
        )
        waiting.start()
        answer.read()
        waiting.join()
    (one,) = gateway.upstream.served(identity)
    assert (found["status"], found["outcome"]) == (200, "completed")
    assert found["completion_tokens"] == one["completion_tokens"] == 20


def recent_row(gateway: Gateway, client: Client, identity: str) -> dict[str, Any] | None:
    rows: list[dict[str, Any]] = gateway.paddock("audit", "--key", client.prefix)
    return next((row for row in rows if row["request_id"] == identity), None)


def test_a_request_that_nobody_made(gateway: Gateway) -> None:
    unknown = "00000000-0000-4000-8000-000000000000"
    said = gateway.paddock("audit", "--request-id", unknown, "--wait", "0", status=1)
    assert f"no request {unknown} in the audit log" in said
    assert "within about a second" in said


def test_a_key_in_a_path_is_not_shown(gateway: Gateway) -> None:
    client = gateway.client()
    answer = gateway.http().get(f"/v1/made-up/{client.key}")
    row = gateway.paddock("audit", "--request-id", request_id(answer))
    assert client.prefix in row["endpoint"]
    assert client.key[13:] not in json.dumps(row)


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (("audit", "--request-id", "x y"), "no request id", 1),
        (("audit", "--request-id", "nz_abcdefghi0123456789"), "more of a key than its prefix", 1),
        (("audit", "--key", "acme"), "is not a key's prefix", 1),
        (("audit", "--tenant", "nobody"), "there is no tenant nobody", 1),
        (("audit", "--since", "yesterday"), "neither like 30d", 2),
        (("audit", "--status", "999"), "not a number from 100 to 599", 2),
        (("audit", "--limit", "0"), "not a number from 1", 2),
        (("audit", "--reason", ""), "not a word", 2),
        (("audit", "--wait", "nan"), "not a number of seconds", 2),
        (("audit", "--since", "1h", "--until", "2h"), "--since must be before --until", 2),
        (("usage", "--by", "tenant,color"), "none of tenant, key, model, day", 2),
        (("usage", "--tenant", "nobody"), "there is no tenant nobody", 1),
        (("usage", "--key", "nz_000000000"), "there is no key nz_000000000", 1),
        (("usage", "--model", "a b"), "not the name of a model", 1),
        (("usage", "--since", "2020-02-01", "--until", "2020-01-01"), "is after", 2),
        (("usage", "--format", "csv"), "--json and --format csv", 2),
    ],
)
def test_what_cannot_be_answered_is_said(gateway: Gateway, arguments: tuple[str, ...], said: str, status: int) -> None:
    assert said in gateway.paddock(*arguments, status=status)


def test_moments() -> None:
    assert reports.moment("2026-11-21") == datetime(2026, 11, 21, tzinfo=UTC)
    assert reports.moment("2026-11-21T12:00+02:00") == datetime(2026, 11, 21, 10, tzinfo=UTC)
    month = reports.moment("30d")
    assert timedelta(days=30) <= datetime.now(UTC) - month < timedelta(days=30, minutes=1)
    for text in ("", "soon", "2026-13-01", "999999w"):
        with pytest.raises(ArgumentTypeError):
            reports.moment(text)
