"""Restarts and ends under load: nobody who was admitted may notice."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest

from tests import harness

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLIENTS = 6


class Load:
    """Clients that ask in a loop until told to stop: whole answers, streams and lists, each held to be complete."""

    def __init__(self, gateway: harness.Gateway) -> None:
        self._gateway = gateway
        self._key = gateway.client().key
        self._stop = threading.Event()
        self.done = 0
        self.failures: list[str] = []

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        headers = {"authorization": f"Bearer {self._key}"}
        async with (
            httpx.AsyncClient(base_url=self._gateway.url, headers=headers, timeout=30, trust_env=False) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for number in range(CLIENTS):
                tasks.create_task(self._ask(client, number))

    async def _ask(self, client: httpx.AsyncClient, number: int) -> None:
        while not self._stop.is_set():
            try:
                wrong = await (self._list(client) if number % 3 == 2 else self._chat(client, number))
            except httpx.HTTPError as error:
                wrong = repr(error)
            self.done += 1
            if wrong:
                self.failures.append(wrong)

    async def _chat(self, client: httpx.AsyncClient, number: int) -> str:
        stream = number % 3 == 1
        body = {
            "model": harness.MODELS[0],
            "messages": [{"role": "user", "content": "!delay=5 one two three"}],
            "stream": stream,
        }
        answer = await client.post("/api/chat", json=body)
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text} {answer.headers}"
        last = json.loads(answer.text.splitlines()[-1])
        return "" if last.get("done") else f"not whole: {answer.text}"

    async def _list(self, client: httpx.AsyncClient) -> str:
        answer = await client.get("/api/tags")
        return "" if answer.status_code == 200 else f"{answer.status_code} {answer.text}"


@contextmanager
def load(gateway: harness.Gateway) -> Iterator[Load]:
    running = Load(gateway)
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        yield running
    finally:
        running.stop()
        thread.join()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[harness.Gateway]:
    """Two workers of each service."""
    with harness.running(tmp_path_factory.mktemp("rolling") / "data", workers=2) as gateway:
        yield gateway


@pytest.mark.parametrize("service", ["policy", "processor"])
def test_a_rolling_restart_fails_no_request(pair: harness.Gateway, service: str) -> None:
    with load(pair) as running:
        harness.eventually(lambda: running.done > 20, patience=30)
        for number in (0, 1):
            before = running.done
            pair.instance.restart(f"{service}-{number}")
            harness.eventually(lambda: running.done > before + 20, patience=30)  # noqa: B023  # called at once
    assert running.failures == []


def test_a_stream_outlives_the_restart_of_its_processor(pair: harness.Gateway) -> None:
    client = pair.client()
    body = {
        "model": harness.MODELS[0],
        "messages": [{"role": "user", "content": "!delay=50 " + "word " * 40}],
        "stream": True,
    }
    restarts = []
    with client.http.stream("POST", "/api/chat", json=body) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        for number in (0, 1):  # whichever of them has this stream
            restarts.append(threading.Thread(target=pair.instance.restart, args=(f"processor-{number}",)))
            restarts[-1].start()
        rest = list(lines)
    for restart in restarts:
        restart.join()
    assert not json.loads(first)["done"]
    assert json.loads(rest[-1])["done"]
    row = pair.audit(answer.headers["x-request-id"])
    assert row["outcome"] == "completed"


def test_the_end_of_a_gateway_waits_for_its_streams(tmp_path: Path) -> None:
    with harness.running(tmp_path / "data") as gateway:
        client = gateway.client()
        body = {
            "model": harness.MODELS[0],
            "messages": [{"role": "user", "content": "!delay=50 " + "word " * 40}],
            "stream": True,
        }
        with client.http.stream("POST", "/api/chat", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            end = threading.Thread(target=gateway.instance.stop)
            end.start()
            last = json.loads(list(lines)[-1])
        end.join()
    assert last["done"]


def test_readiness_goes_first(tmp_path: Path) -> None:
    with harness.running(tmp_path / "data", PADDOCK_DRAIN_SECONDS="30") as gateway:
        gateway.instance.signal("policy-0", signal.SIGTERM)

        def draining() -> bool:
            answer = gateway.http().get("/readyz")
            return answer.status_code == 503 and answer.json()["status"] == "draining"

        harness.eventually(draining)
        assert gateway.client().chat("still here").status_code == 200
        gateway.instance.kill("policy-0")
