"""Opening many sessions, and opening them with hostile words."""

from __future__ import annotations

import concurrent.futures
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.edge.visitors import allow, listed, new_origin, page, refused, visit
from tests.harness import eventually, request_id

if TYPE_CHECKING:
    from tests.harness import Gateway


def test_a_fingerprint_has_so_many_live_sessions(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant, "--opened-per-minute", "100", fingerprint="same")
    for _ in range(4):
        visit(gateway, tenant, origin=visitor.origin, fingerprint="same")
    response = visitor.http.post("/session", json={"fingerprint": "same"})
    refused(response, 429, gateway, "session_live")
    assert 1700 < int(response.headers["retry-after"]) <= 1800
    assert response.headers["access-control-allow-origin"] == visitor.origin
    visit(gateway, tenant, origin=visitor.origin, fingerprint="another")
    gateway.paddock("revoke-session", visitor.id)
    assert visitor.http.post("/session", json={"fingerprint": "same"}).status_code == 200, "one ended: there is room"


def test_a_tenant_has_so_many_live_sessions(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant, "--max-live", "2")
    visit(gateway, tenant, origin=visitor.origin, fingerprint="b")
    refused(visitor.http.post("/session", json={"fingerprint": "c"}), 429, gateway, "session_live_tenant")


def test_a_flood_of_openings_is_held(gateway: Gateway, tenant: str) -> None:
    """Five hundred from one address: ten sessions, no argon2, and hardly a write in PostgreSQL."""
    origin = new_origin()
    allow(gateway, tenant, origin)
    http = page(gateway, origin)
    before = verifications(gateway)
    written = transactions(gateway)

    def one(number: int) -> httpx.Response:
        return http.post("/session", json={"fingerprint": f"visitor {number}"})

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one, range(500)))
    opened = [one for one in found if one.status_code == 200]
    held = [one for one in found if one.status_code == 429]
    assert len(opened) == 10
    assert len(held) == 490
    assert all(1 <= int(one.headers["retry-after"]) <= 60 for one in held)
    assert verifications(gateway) == before
    assert transactions(gateway) - written < 250, "a write each would be five hundred; batches go with time"
    gateway.audit(request_id(opened[-1]))

    def counted() -> dict[str, int]:
        rows = gateway.sql(
            "SELECT reason, count(*) AS n FROM audit WHERE tenant = $1 AND endpoint = '/session' AND method = 'POST' "
            "GROUP BY reason", tenant,
        )  # fmt: skip
        return {row["reason"]: row["n"] for row in rows}

    eventually(lambda: counted().get("session_address_rate"))
    time.sleep(1)  # what else would come has come
    counts = counted()
    assert counts[""] == 10
    assert 1 <= counts["session_address_rate"] <= 40, (
        "twenty an address and minute have a row: the flood has two minutes"
    )
    assert len(listed(gateway, tenant)) == 10


def transactions(gateway: Gateway) -> int:
    """How many have written anything so far; reading takes no number."""
    (row,) = gateway.sql("SELECT pg_current_xact_id()::text::bigint AS number")
    found: int = row["number"]
    return found


def verifications(gateway: Gateway) -> float:
    metrics = httpx.get(f"{gateway.url}/metrics").text
    return sum(
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith("paddock_key_verifications_total{")
    )


@pytest.mark.parametrize("size", [16_385, 262_144])
def test_large_openings(gateway: Gateway, tenant: str, size: int) -> None:
    visitor = visit(gateway, tenant)
    response = visitor.http.post("/session", content=b'{"fingerprint":"a","entropyData":"' + b"x" * size + b'"}')
    assert response.status_code in (400, 413)


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def test_hostile_fingerprints_are_only_text(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant, "--opened-per-minute", "100")
    for evil in (
        "}{s00}:t:1",
        "*",
        "\r\nFLUSHALL\r\n",
        "\x00",
        "sl:1",
        "é" * 512,
        '"; DROP TABLE tenant;--',
        "../../x",
    ):
        other = visit(gateway, tenant, origin=visitor.origin, fingerprint=evil)
        assert other.ask().status_code == 200
    assert visitor.ask().status_code == 200
    names = [name.decode("utf-8", "replace") for name in gateway.redis().scan_iter("pd:*s[fpl]:*")]
    assert names
    assert not [name for name in names if set(name) - set("pd:{s}0123456789lfsp-_") - set(LETTERS)]
