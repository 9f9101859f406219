"""`policy/edge/endpoints.py`, `readiness.py` and `http_server.py`: what the gateway answers by itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx
import pytest
import uvloop

from policy.admission.discovery import Discovered, Snapshot, UpstreamState
from policy.edge import http_server
from policy.edge.endpoints import LOOPBACK, Endpoints
from policy.edge.readiness import Readiness
from policy.rules.decision import Deny, Reason
from policy.rules.tenants import Key, Tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from policy.edge.readiness import Probe

ID = "5a7e1e1c-0000-4000-8000-000000000001"
NOW = datetime(2026, 11, 22, tzinfo=UTC)

MODIFIED = "2024-08-01T10:00:00Z"
ALL: dict[str, dict[str, object]] = {
    "llama3.1:8b": {"name": "llama3.1:8b", "model": "llama3.1:8b", "modified_at": MODIFIED, "size": 4920753328},
    "mistral:7b": {"name": "mistral:7b", "model": "mistral:7b", "modified_at": MODIFIED, "size": 4113301824},
    "nomic-embed-text:latest": {"name": "nomic-embed-text:latest", "model": "nomic-embed-text:latest"},
}


def snapshot(*names: str, reachable: bool = True) -> Snapshot:
    models = {name: Discovered(str(ALL[name]["name"]), ALL[name], ("gpu:11434",)) for name in names}
    return Snapshot(models, {"gpu:11434": UpstreamState("gpu:11434", reachable=reachable)})


@dataclass
class Catalogue:
    snapshot: Snapshot = field(default_factory=lambda: snapshot(*ALL))


def holder(name: str, *models: str, key_models: frozenset[str] | None = None, all_models: bool = False) -> Key:
    tenant = Tenant(1, name, allow_all_models=all_models, models=frozenset(models))
    return Key(1, "nz_aaaaaaaaa", "$argon2id$", tenant, models=key_models)


@dataclass
class Door:
    """Knows a few keys by name; remembers what it was asked."""

    keys: dict[str, Key | Deny] = field(default_factory=dict)
    asked: list[tuple[str | None, str]] = field(default_factory=list)

    async def authenticate(self, presented: str | None, address: str, now: datetime) -> Key | Deny:
        assert now == NOW
        self.asked.append((presented, address))
        if presented == "fault":
            raise RuntimeError("nobody foresaw this")
        return Deny(Reason.KEY_MISSING) if presented is None else self.keys.get(presented, Deny(Reason.KEY_UNKNOWN))


async def well() -> bool:
    return True


async def ill() -> bool:
    raise ConnectionRefusedError


@dataclass
class House:
    """Everything that an app is made of."""

    door: Door = field(default_factory=Door)
    catalogue: Catalogue = field(default_factory=Catalogue)
    probes: dict[str, Probe] = field(default_factory=lambda: {"postgresql": well, "redis": well, "ollama": well})
    metrics_from: tuple[str, ...] = LOOPBACK

    def app(self) -> Endpoints:
        return Endpoints(
            version="0.1.0",
            catalogue=self.catalogue,
            authenticate=self.door.authenticate,
            readiness=Readiness(self.probes),
            exposition=lambda: b"paddock_requests_total 1.0\n",
            metrics_from=self.metrics_from,
            now=lambda: NOW,
        )


def asked(
    path: str, *, method: str = "GET", house: House | None = None, key: str | None = None, **headers: str
) -> httpx.Response:
    """What the app answers, in process; the client is the one that Envoy names last in x-forwarded-for."""

    async def exchange() -> httpx.Response:
        fields = {"x-request-id": ID, "x-forwarded-for": "203.0.113.9, 192.0.2.7"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            fields["authorization"] = f"Bearer {key}"
        transport = httpx.ASGITransport((house or House()).app())
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.request(method, path, headers=fields)

    return asyncio.run(exchange())


def error(message: str, kind: str, code: int) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "code": code}, "request_id": ID}


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


def test_readiness_names_what_is_missing() -> None:
    ready = asked("/readyz")
    checks = {"postgresql": "ok", "redis": "ok", "ollama": "ok"}
    assert (ready.status_code, ready.json()) == (200, {"status": "ok", "checks": checks})
    answer = asked("/readyz", house=House(probes={"postgresql": well, "redis": ill, "ollama": well}))
    missing = {**checks, "redis": "unavailable"}
    assert (answer.status_code, answer.json()) == (503, {"status": "unavailable", "checks": missing})


@pytest.mark.parametrize(
    ("query", "status", "named"),
    [
        ("exclude=ollama", 200, {"postgresql", "redis"}),
        ("exclude=redis&exclude=ollama", 200, {"postgresql"}),
        ("exclude=redis", 503, {"postgresql", "ollama"}),
        ("exclude=all&exclude=&only=redis", 503, {"postgresql", "redis", "ollama"}),
        ("exclude=%6Fllama", 200, {"postgresql", "redis"}),
        ("\xff=%ff&" * 500 + "exclude=ollama", 503, {"postgresql", "redis", "ollama"}),
    ],
    ids=["one", "two", "another", "unknown", "escaped", "long"],
)
def test_readiness_but_for_some(query: str, status: int, named: set[str]) -> None:
    answer = asked(f"/readyz?{query}", house=House(probes={"postgresql": well, "redis": well, "ollama": ill}))
    assert (answer.status_code, set(answer.json()["checks"])) == (status, named)


def test_a_flood_of_readiness_questions_asks_each_dependency_once_until_it_is_old() -> None:
    count = 0
    now = 100.0

    async def probe() -> bool:
        nonlocal count
        count += 1
        await asyncio.sleep(0)
        return count < 2

    async def scenario() -> None:
        nonlocal now
        readiness = Readiness({"redis": probe}, clock=lambda: now)
        answers = await asyncio.gather(*(readiness.answer() for _ in range(200)))
        assert {status for status, _ in answers} == {200}
        assert count == 1
        now += 0.6
        assert (await readiness.answer())[0] == 503
        assert count == 2

    asyncio.run(scenario())


def test_a_dependency_that_hangs_is_unavailable_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.edge.readiness.PROBE_TIMEOUT", 0.05)

    async def hang() -> None:
        await asyncio.Event().wait()

    answer = asked("/readyz", house=House(probes={"postgresql": hang, "redis": well}))
    assert answer.json()["checks"] == {"postgresql": "unavailable", "redis": "ok"}


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


@contextlib.asynccontextmanager
async def served(app: Endpoints, listen: str) -> AsyncIterator[int]:
    """Serve `app`; the port, where there is one."""
    started = asyncio.Event()
    bound = http_server.bind(listen)
    port = bound.getsockname()[1] if listen.startswith("127") else 0
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        serving = group.create_task(http_server.serve(app, bound, started=started))
        await started.wait()
        yield port
        serving.cancel()


def in_uvloop(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    uvloop.run(scenario())


def test_it_serves_on_a_unix_socket_that_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"

    async def scenario() -> None:
        house = House(Door({"k": holder("acme", all_models=True)}))
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with (
            served(house.app(), f"unix:{path}"),
            httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
        ):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            answer = await client.get("/api/tags", headers={"authorization": "Bearer k"})
            assert len(answer.json()["models"]) == 3
            assert "server" not in answer.headers
            head = await client.head("/api/tags", headers={"authorization": "Bearer k"})
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == answer.headers["content-length"]
            assert (await client.get("/metrics")).status_code == 200  # whoever reaches the socket is on this machine

    in_uvloop(scenario)


def test_it_replaces_the_socket_of_a_process_that_died_but_no_other_file(tmp_path: Path) -> None:
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))

    async def scenario() -> None:
        async with served(House().app(), f"unix:{dead}"):
            _, writer = await asyncio.open_unix_connection(str(dead))
            writer.close()

    in_uvloop(scenario)

    precious = tmp_path / "notes.txt"
    precious.write_text("mine")
    with pytest.raises(OSError, match="Address already in use"):
        http_server.bind(f"unix:{precious}")
    assert precious.read_text() == "mine"


def test_it_serves_on_tcp_and_leaves_the_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)

    async def scenario() -> None:
        async with served(House().app(), "127.0.0.1:0") as port, httpx.AsyncClient() as client:
            assert signal.getsignal(signal.SIGTERM) is before
            assert (await client.get(f"http://127.0.0.1:{port}/api/version")).json() == {"version": "0.1.0"}
            assert (await client.get(f"http://127.0.0.1:{port}/metrics")).status_code == 200

    in_uvloop(scenario)


@pytest.mark.parametrize("listen", ["", "8080", "localhost:", "localhost:http"])
def test_a_listen_address_of_another_form_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match="write unix:/path or host:port"):
        http_server.bind(listen)
