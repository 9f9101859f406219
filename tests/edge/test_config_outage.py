"""Policy or processor gone: 503, never an answer; and back in service within a second, without anyone's help."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2

from tests.edge import rig as rigs
from tests.edge.rig import Rig, until
from tests.edge.services import script

if TYPE_CHECKING:
    import asyncio

    import httpx

    from gateway.envoy_config import Config
    from tests.edge.services import Message, Seen, Stream


def ask(rig: Rig) -> httpx.Response:
    return rig.client.post("/api/chat", content=b"{}")


@pytest.mark.parametrize("name", ["policy", "processor"])
def test_an_outage_is_503_and_ends_by_itself(rig: Rig, name: str) -> None:
    rig.processor.process = script()
    assert ask(rig).status_code == 200
    rig.stop(name)
    try:
        served = len(rig.upstream.seen)
        for _ in range(5):
            response = ask(rig)
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert response.json()["error"] == {
                "message": "temporarily unavailable",
                "type": "unavailable",
                "code": 503,
            }
        assert len(rig.upstream.seen) == served
        until(lambda: rig.healthy(name) == 0)
        assert ask(rig).status_code == 503
        assert rig.client.get("/api/tags").status_code == (503 if name == "policy" else 200)
        assert rig.client.get("/healthz").status_code == 200
    finally:
        rig.start(name)
    back = time.monotonic()
    until(lambda: ask(rig).status_code == 200)
    assert time.monotonic() - back < 15  # two; the machine may be busy


def test_policys_pages_are_503_without_policy(rig: Rig) -> None:
    rig.pages.answer = _hang_up
    for path in ("/readyz", "/api/version", "/metrics", "/api/tags"):
        response = rig.client.get(path)
        assert response.status_code == 503, path
        assert response.json()["error"]["type"] == "unavailable"


async def _hang_up(_request: Seen, writer: asyncio.StreamWriter) -> None:
    writer.close()


def test_processor_that_fails_is_503(rig: Rig) -> None:
    async def failing(stream: Stream) -> Stream:
        async for message in stream:
            raise RuntimeError("on purpose")
            yield message

    rig.processor.process = failing
    assert ask(rig).status_code == 503


def test_processor_that_answers_the_wrong_phase_is_503(rig: Rig) -> None:
    async def confused(stream: Stream) -> Stream:
        async for _ in stream:
            answer: Message = external_processor_pb2.ProcessingResponse()
            answer.response_body.response.SetInParent()
            yield answer

    rig.processor.process = confused
    assert ask(rig).status_code == 503


def test_policy_is_asked_once_however_long_it_takes(rig: Rig) -> None:
    """A try has the whole timeout: Envoy would take a short `max_interval` of the retry policy for the try's own."""
    rig.policy.seconds = 1.5
    assert ask(rig).status_code == 200
    assert len(rig.policy.checks) == 1


def test_policy_that_does_not_answer_is_503(rig: Rig) -> None:
    rig.policy.seconds = 60
    began = time.monotonic()
    assert ask(rig).status_code == 503
    assert 4 < time.monotonic() - began < 20
    assert rig.upstream.seen == []


# A policy as deployed: several workers, each a process on a socket of its own, and one of them is killed.

WORKER = """
import asyncio, sys
import grpc
from envoy.service.auth.v3 import external_auth_pb2_grpc
sys.path.insert(0, sys.argv[2])
from policy.edge.http_check import HttpChecks
from policy.edge.http_server import bind
from tests.edge.services import PolicyEnd, over_http

async def main():
    server = grpc.aio.server()
    external_auth_pb2_grpc.add_AuthorizationServicer_to_server(PolicyEnd(), server)
    server.add_insecure_port("unix:" + sys.argv[1])
    await HttpChecks(over_http(PolicyEnd()), 1_048_576).start(bind("unix:" + sys.argv[1] + ".edge"))
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()

asyncio.run(main())
"""


class Workers(Rig):
    """A rig whose policy is two worker processes."""

    def worker(self, number: int) -> subprocess.Popen[str]:
        path = str(self.directory / f"worker{number}.sock")
        command = [sys.executable, "-c", WORKER, path, str(rigs.SHIPPED.parent)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def config(self) -> Config:
        config = super().config()
        for cluster in config.bootstrap["static_resources"]["clusters"]:
            if cluster["name"] in ("policy", "policy_edge"):
                end = ".sock" if cluster["name"] == "policy" else ".sock.edge"
                cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
                    {"endpoint": {"address": {"pipe": {"path": str(self.directory / f"worker{number}{end}")}}}}
                    for number in range(2)
                ]
        return config


def test_a_killed_worker_costs_no_request_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rigs, "Rig", Workers)
    with rigs.running() as rig:
        assert isinstance(rig, Workers)
        workers = [rig.worker(0), rig.worker(1)]
        try:
            until(lambda: rig.healthy("policy") == 2)
            rig.processor.process = script()
            assert {ask(rig).status_code for _ in range(20)} == {200}
            for number in (0, 1):
                workers[number].send_signal(signal.SIGKILL)
                workers[number].wait()
                assert {ask(rig).status_code for _ in range(50)} == {200}
                until(lambda: rig.healthy("policy") == 1)
                _close(workers[number])
                workers[number] = rig.worker(number)
                back = time.monotonic()
                until(lambda: rig.healthy("policy") == 2)
                assert time.monotonic() - back < 15  # two; the machine may be busy
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
                _close(worker)


def _close(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.close()
