"""Opening many sessions, and opening them with hostile words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.edge.visitors import refused, visit

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
