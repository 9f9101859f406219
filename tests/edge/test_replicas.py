"""Two Envoys, three policies and two processors before a cluster of three Valkeys: one tenant's limits are one."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.instance import Instance
from gateway.launch import Config
from gateway.supervisor import OnDeath
from tests.harness import MODELS, Gateway, Upstream, eventually, request_id
from tests.postgresql import database, postgresql
from tests.stores.cluster import running_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["database", "postgresql"]

PRICE = 1 + 10  # the prompt's one word, and what is answered
MESSAGES = [{"role": "user", "content": "!tokens=10"}]


@contextlib.contextmanager
def replica(directory: Path, upstream: Upstream, database: str, counters: str, workers: int) -> Iterator[Gateway]:
    """One Envoy and its services, on stores that it shares."""
    config = Config(
        data_dir=directory,
        upstreams=(upstream.url,),
        port=0,
        workers=workers,
        database_url=database,
        redis_url=counters,
        announce=False,
        on_death=OnDeath.LEAVE,
        envoy_threads=1,
        environment={"PADDOCK_DISCOVERY_INTERVAL_SECONDS": "1"},
    )
    with Instance(config) as instance:
        gateway = Gateway(instance, upstream, directory)
        try:
            yield gateway
        finally:
            gateway.close()


def at_once(gateways: list[Gateway], key: str, count: int, **fields: Any) -> list[httpx.Response]:
    """The same chat, from many connections to all of them."""

    def one(number: int) -> httpx.Response:
        url = gateways[number % len(gateways)].url
        body = {"model": MODELS[0], "messages": MESSAGES, "stream": False, **fields}
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(f"{url}/api/chat", json=body, headers=headers, timeout=60, trust_env=False)

    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.timeout(240)
def test_many_replicas_hold_one_limit(tmp_path: Path, database: str) -> None:
    with Upstream() as upstream, running_cluster() as cluster, contextlib.ExitStack() as stack:
        first = stack.enter_context(replica(tmp_path / "a", upstream, database, cluster.url, workers=2))
        second = stack.enter_context(replica(tmp_path / "b", upstream, database, cluster.url, workers=1))
        first.instance.stop_part("processor-1")
        both = [first, second]

        rate = first.client(None, "--rpm", "25")
        assert [answer.status_code for answer in at_once(both, rate.key, 60)].count(200) == 25

        budget = first.client(tenant_options=("--budget-total", str(20 * PRICE)))
        answers = at_once(both, budget.key, 100, options={"num_predict": 10})
        granted = [answer for answer in answers if answer.status_code == 200]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert len(granted) * PRICE <= 20 * PRICE
        # What is left is the same at either door.
        left = {gateway.http(budget.key).get("/api/tags").headers["x-budget-tokens-remaining"] for gateway in both}
        assert left == {str((20 - len(granted)) * PRICE)}

        # Every answer has its one row, and the rows have what the upstream counted.
        asked = [request_id(answer) for answer in answers]
        rows = "SELECT request_id FROM audit WHERE request_id = ANY ($1)"
        eventually(lambda: len(first.sql(rows, asked)) >= len(asked))
        (sums,) = eventually(
            lambda: first.sql(
                "SELECT sum(completion_tokens)::int AS tokens, sum(requests)::int AS requests FROM usage_daily u"
                " JOIN api_key k ON k.id = u.key_id WHERE k.prefix = $1 HAVING sum(requests) = $2",
                budget.prefix,
                len(granted),
            )
        )
        served = {request_id(answer) for answer in granted}
        assert sums["tokens"] == sum(
            one["completion_tokens"] for one in upstream.served() if one["request_id"] in served
        )
        assert sorted(row["request_id"] for row in first.sql(rows, asked)) == sorted(asked)
        # The shards are spread: every node of the cluster holds some.
        assert all(node.client().dbsize() for node in cluster.nodes)
