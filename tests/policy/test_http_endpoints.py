"""`policy/edge/endpoints.py`: what the gateway answers by itself."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from policy.edge.endpoints import LOOPBACK
from policy.rules.decision import Deny, Reason
from tests.policy.house import ALL, Catalogue, Door, House, asked, error, holder, snapshot


def test_tags_are_the_effective_set_with_the_upstreams_own_details() -> None:
    house = House(Door({"k": holder("acme", "llama3.1:8b", "absent:latest")}))
    answer = asked("/api/tags", house=house, key="k")
    assert (answer.status_code, answer.json()) == (200, {"models": [ALL["llama3.1:8b"]]})
    assert answer.headers["content-type"] == "application/json"
    assert house.door.asked == [("k", "192.0.2.7")]


def test_models_are_the_same_set_as_an_openai_list() -> None:
    house = House(Door({"k": holder("acme", all_models=True)}))
    answer = asked("/v1/models", house=house, key="k")
    assert answer.json() == {
        "object": "list",
        "data": [
            {"id": "llama3.1:8b", "object": "model", "created": 1722506400, "owned_by": "library"},
            {"id": "mistral:7b", "object": "model", "created": 1722506400, "owned_by": "library"},
            {"id": "nomic-embed-text:latest", "object": "model", "created": 0, "owned_by": "library"},
        ],
    }


def test_each_key_sees_its_own_set_and_each_snapshot_its_own_models() -> None:
    narrowed = holder("acme", "llama3.1:8b", "mistral:7b", key_models=frozenset({"mistral:7b"}))
    house = House(
        Door({"wide": holder("acme", "llama3.1:8b", "mistral:7b"), "narrow": narrowed, "none": holder("new")})
    )
    app = house.app()

    async def names(key: str) -> list[str]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            answer = await client.get("/api/tags", headers={"x-api-key": key})
            return [model["name"] for model in answer.json()["models"]]

    async def scenario() -> None:
        for _ in range(2):  # the second time from what was serialised
            assert await names("wide") == ["llama3.1:8b", "mistral:7b"]
            assert await names("narrow") == ["mistral:7b"]
            assert await names("none") == []
        house.catalogue.snapshot = snapshot("mistral:7b")
        assert await names("wide") == ["mistral:7b"]

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/api/tags", "/v1/models"])
def test_a_list_needs_a_key_and_the_refusal_is_policys_own(path: str) -> None:
    for key in (None, "unknown"):
        answer = asked(path, key=key)
        assert (answer.status_code, answer.json()) == (401, error("unauthorized", "unauthorized", 401))
        assert answer.headers["www-authenticate"] == "Bearer"

    down = House(Door({"k": Deny(Reason.DATABASE_DOWN)}))
    answer = asked(path, house=down, key="k")
    assert (answer.status_code, answer.json()) == (503, error("temporarily unavailable", "unavailable", 503))
    assert answer.headers["retry-after"] == "1"


def test_a_fault_is_a_clean_503(caplog: pytest.LogCaptureFixture) -> None:
    answer = asked("/api/tags", key="fault")
    assert (answer.status_code, answer.json()) == (503, error("temporarily unavailable", "unavailable", 503))
    assert [record.message for record in caplog.records] == ["endpoint_fault"]


def test_no_upstream_at_all_is_502_and_not_an_empty_list() -> None:
    house = House(Door({"k": holder("acme", all_models=True)}), Catalogue(snapshot(reachable=False)))
    answer = asked("/api/tags", house=house, key="k")
    assert (answer.status_code, answer.json()) == (502, error("upstream unavailable", "bad_gateway", 502))
    house.catalogue.snapshot = snapshot()  # it answers, and has none
    assert asked("/api/tags", house=house, key="k").json() == {"models": []}


@pytest.mark.parametrize(
    ("headers", "presented"),
    [
        ({"authorization": "bearer  abc"}, "abc"),
        ({"x_api_key": "abc"}, "abc"),
        ({"authorization": "Basic abc"}, ""),
        ({"authorization": "Bearer abc", "x_api_key": "other"}, ""),
        ({}, None),
    ],
)
def test_the_key_is_read_as_ext_authz_reads_it(headers: dict[str, str], presented: str | None) -> None:
    house = House()
    asked("/v1/models", house=house, **headers)
    assert house.door.asked[0][0] == presented


def test_the_version_is_the_gateways() -> None:
    answer = asked("/api/version")
    assert (answer.status_code, answer.json()) == (200, {"version": "0.1.0"})
    assert asked("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/tags"), ("HEAD", "/v1/models"), ("DELETE", "/v1/models"), ("GET", "/"), ("GET", "/api/tags/"),
        ("GET", "/api/ps"), ("POST", "/api/chat"), ("OPTIONS", "/readyz"), ("GET", "/Api/Tags"),
    ],
)  # fmt: skip
def test_everything_else_is_the_generic_403(method: str, path: str) -> None:
    answer = asked(path, method=method, key="k")
    assert answer.status_code == 403
    if method != "HEAD":
        assert answer.json() == error("forbidden", "forbidden", 403)


@pytest.mark.parametrize(
    ("forwarded", "status"),
    [
        ("127.0.0.1", 200), ("::1", 200), ("203.0.113.9, 127.0.0.1", 200), ("::ffff:127.0.0.1", 200),
        ("127.0.0.1, 192.0.2.7", 403), ("192.0.2.7", 403), ("", 403), ("localhost", 403),
    ],
)  # fmt: skip
def test_metrics_are_for_loopback(forwarded: str, status: int) -> None:
    answer = asked("/metrics", x_forwarded_for=forwarded)
    assert answer.status_code == status
    if status == 200:
        assert answer.text == "paddock_requests_total 1.0\n"
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    else:
        assert answer.json() == error("forbidden", "forbidden", 403)


@pytest.mark.parametrize(
    ("networks", "peer", "forwarded", "status"),
    [
        (LOOPBACK, "127.0.0.1", None, 200),
        (LOOPBACK, "10.1.2.3", None, 403),
        (("10.1.0.0/16",), "10.1.2.3", None, 200),
        (("10.1.0.0/16",), "127.0.0.1", None, 403),
        (LOOPBACK, "10.1.2.3", "127.0.0.1", 403),  # who connects without a proxy writes what it likes
        (("10.1.0.0/16",), "10.1.2.3", "192.0.2.7", 403),
        ((*LOOPBACK, "10.1.0.0/16"), "10.1.2.3", "127.0.0.1", 200),  # Envoy on another machine
        ((), "127.0.0.1", None, 403),
    ],
)
def test_metrics_are_for_the_networks_that_are_named(
    networks: tuple[str, ...], peer: str, forwarded: str | None, status: int
) -> None:
    async def exchange() -> int:
        transport = httpx.ASGITransport(House(metrics_from=networks).app(), client=(peer, 40000))
        async with httpx.AsyncClient(transport=transport, base_url="http://policy") as client:
            fields = {} if forwarded is None else {"x-forwarded-for": forwarded}
            return (await client.get("/metrics", headers=fields)).status_code

    assert asyncio.run(exchange()) == status


def test_an_answer_is_json_whatever_the_request_id_holds() -> None:
    answer = asked("/nowhere", x_request_id='"}{\\')
    assert json.loads(answer.content)["request_id"] == '"}{\\'
