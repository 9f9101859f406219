"""Which Ollama a request goes to: the one that policy names, else any; one that is down is passed over at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.envoy_config import write
from tests.edge.rig import Rig, running, until
from tests.edge.services import allow, script

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def module_rig() -> Iterator[Rig]:
    with running(hosts=3) as rig:
        until(lambda: rig.healthy("ollama") == 3)
        yield rig


def served_by(rig: Rig, requests: int) -> list[int]:
    """The ports that served so many requests, in order; asked of Envoy, which alone knows."""
    rig.processor.process = script()
    ids = [rig.client.post("/api/chat", content=b"{}").headers["x-request-id"] for _ in range(requests)]
    lines = until(lambda: {one["request_id"]: one for one in rig.access_log()}.keys() >= set(ids) and rig.access_log())
    upstreams = {line["request_id"]: line["upstream"] for line in lines}
    return [int(upstreams[one].rpartition(":")[2]) for one in ids]


def test_policy_names_the_host(rig: Rig) -> None:
    for port in (*rig.ports, *reversed(rig.ports)):
        named = allow(upstream=f"127.0.0.1:{port}")
        rig.policy.answer = lambda _, named=named: named  # type: ignore[misc]  # mypy does not infer defaults of lambdas
        assert served_by(rig, 4) == [port] * 4


def test_where_policy_names_none_the_hosts_take_turns(rig: Rig) -> None:
    rig.policy.answer = allow
    assert set(served_by(rig, 12)) == set(rig.ports)


@pytest.mark.parametrize("name", ["127.0.0.1:1", "not an address", ""])
def test_a_name_that_is_no_host_falls_back(rig: Rig, name: str) -> None:
    rig.policy.answer = lambda _: allow(upstream=name)
    assert set(served_by(rig, 6)) <= set(rig.ports)


def test_a_client_cannot_name_the_host(rig: Rig) -> None:
    rig.policy.answer = lambda _: allow(upstream=f"127.0.0.1:{rig.ports[0]}")
    rig.client.headers["x-paddock-upstream"] = f"127.0.0.1:{rig.ports[1]}"
    try:
        assert served_by(rig, 6) == [rig.ports[0]] * 6
    finally:
        del rig.client.headers["x-paddock-upstream"]


def test_nothing_of_the_choice_reaches_the_host(rig: Rig) -> None:
    rig.policy.answer = lambda _: allow(upstream=f"127.0.0.1:{rig.ports[0]}")
    served_by(rig, 1)
    assert str(rig.ports[0]) not in str(rig.upstream.seen)


def test_a_host_that_is_down_is_passed_over_and_all_down_is_502() -> None:
    with running(hosts=2) as rig:
        until(lambda: rig.healthy("ollama") == 2)
        rig.policy.answer = lambda _: allow(upstream=f"127.0.0.1:{rig.ports[0]}")
        rig.stop_host(0)
        assert served_by(rig, 8) == [rig.ports[1]] * 8
        rig.stop_host(1)
        for _ in range(3):
            response = rig.client.post("/api/chat", content=b"{}")
            assert response.status_code == 502
            assert response.json()["error"] == {"message": "upstream unavailable", "type": "bad_gateway", "code": 502}


def test_a_new_list_of_hosts_is_taken_up_while_running() -> None:
    with running(hosts=2) as rig:
        until(lambda: rig.healthy("ollama") == 2)
        config = rig.config()
        hosts = config.clusters["resources"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
        del hosts[0]
        write(config, rig.directory / "envoy")
        until(lambda: rig.stat("cluster.ollama.membership_total") == 1)
        assert rig.stat("cluster_manager.cds.update_rejected") == 0
        rig.policy.answer = allow
        assert set(served_by(rig, 4)) == {rig.ports[1]}
