"""The gateway's own pages in process, for tests: an app with a few keys, models and dependencies."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx

from policy.admission.discovery import Discovered, Snapshot, UpstreamState
from policy.edge.endpoints import LOOPBACK, Endpoints
from policy.edge.readiness import Readiness
from policy.rules.decision import Deny, Reason
from policy.rules.tenants import Key, Tenant

if TYPE_CHECKING:
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
