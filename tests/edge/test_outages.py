"""Each dependency killed and brought back: never an answer meanwhile, and recovery by itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from tests import harness
from tests.harness import MODELS, eventually, request_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness import Client, Gateway


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose parts these tests may kill."""
    with harness.running(tmp_path_factory.mktemp("outages") / "data") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def client(lone: Gateway) -> Client:
    client = lone.client()
    assert client.chat("hello").status_code == 200
    return client


def fails_closed(client: Client, status: int = 503) -> None:
    """Soon (it takes parts of a second, and the machine may be busy) nothing is answered any more, and what is said
    instead is clean."""
    response = eventually(lambda: other(client, 200), patience=10.0, every=0.02)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "request_id"}
    assert response.json()["request_id"] == request_id(response)
    assert "retry-after" in response.headers or status == 502
    for _ in range(5):
        assert client.chat("hello").status_code == status


def other(client: Client, status: int) -> httpx.Response | None:
    response = client.chat("hello")
    return None if response.status_code == status else response


def recovers(client: Client) -> None:
    eventually(lambda: client.chat("hello").status_code == 200, patience=30.0)


@pytest.mark.parametrize("part", ["postgres", "valkey", "policy-0", "processor-0"])
def test_killed(lone: Gateway, client: Client, part: str) -> None:
    lone.instance.kill(part)
    try:
        fails_closed(client)
        with lone.http() as http:
            assert http.post("/api/pull").status_code == 403, "what is never allowed is refused without any service"
            assert http.get("/healthz").status_code == 200
            if part in ("postgres", "valkey"):
                checks = eventually(lambda: unready(http), patience=10.0)
                assert checks["postgresql" if part == "postgres" else "redis"] == "unavailable"
    finally:
        lone.instance.restart(part)
    recovers(client)
    with lone.http() as http:
        eventually(lambda: http.get("/readyz").status_code == 200)


def unready(http: httpx.Client) -> dict[str, str] | None:
    response = http.get("/readyz")
    found: dict[str, str] | None = response.json()["checks"] if response.status_code == 503 else None
    return found


@pytest.mark.parametrize("part", ["postgres", "valkey"])
def test_hung(lone: Gateway, client: Client, part: str) -> None:
    family = [psutil.Process(lone.instance.pids()[part])]
    family += family[0].children(recursive=True)  # PostgreSQL answers in processes of their own
    for process in family:
        process.suspend()
    try:
        response = eventually(lambda: other(client, 200), patience=12.0)
        assert response.status_code == 503
    finally:
        for process in family:
            process.resume()
    recovers(client)


def test_ollama_down(lone: Gateway, client: Client) -> None:
    lone.upstream.stop()
    try:
        fails_closed(client, 502)
        with lone.http() as http:
            checks = eventually(lambda: unready(http), patience=15.0)
        assert checks["ollama"] == "unavailable"
    finally:
        lone.upstream.start()
    recovers(client)


STREAM = {"model": MODELS[0], "messages": [{"role": "user", "content": "x !tokens=400 !delay=20"}]}


def test_a_processor_killed_in_a_stream_that_envoy_meters(lone: Gateway, client: Client) -> None:
    """It ends well, and policy settles what was read of it."""
    with client.http.stream("POST", "/api/chat", json=STREAM) as response:
        lines = response.iter_lines()
        for _ in range(3):
            next(lines)
        lone.instance.kill("processor-0")
        *_, last = lines
    assert json.loads(last)["eval_count"] == 400
    row = lone.audit(request_id(response), patience=30)
    assert (row["completion_tokens"], row["estimated"], row["outcome"]) == (400, False, "completed")
    lone.instance.restart("processor-0")
    recovers(client)


def test_a_processor_killed_in_a_stream_that_it_meters_cuts_it(tmp_path: Path) -> None:
    """The rest of the answer would pass unmetered: better that it does not pass."""
    with harness.running(tmp_path / "data", metering="processor") as own:
        cut_by_its_processor(own, own.client())


def cut_by_its_processor(lone: Gateway, client: Client) -> None:
    with client.http.stream("POST", "/api/chat", json=STREAM) as response:
        lines = response.iter_lines()
        for _ in range(3):
            next(lines)
        lone.instance.kill("processor-0")
        with pytest.raises(httpx.HTTPError):
            for _ in lines:
                pass
    lone.instance.restart("processor-0")
    recovers(client)
    row = lone.audit(request_id(response), patience=30)
    assert row["estimated"]
    assert row["completion_tokens"] >= 1
    served = eventually(
        lambda: [one for one in lone.upstream.served(request_id(response)) if one["outcome"] != "running"]
    )
    assert served[0]["outcome"] == "aborted"


def test_nothing_is_lost_over_a_restart_of_everything(lone: Gateway, client: Client) -> None:
    response = client.chat("one two three")
    for part in ("valkey", "postgres", "policy-0", "processor-0"):
        lone.instance.kill(part)
    for part in ("postgres", "valkey", "policy-0", "processor-0"):
        lone.instance.restart(part)
    # What Envoy's log adds (bytes, duration) may die with a policy that had just taken it; what was used may not.
    query = "SELECT * FROM audit WHERE request_id = $1 AND settled_at IS NOT NULL"
    (row,) = eventually(lambda: lone.sql(query, request_id(response)), patience=20)
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (3, 4, False)
    recovers(client)
