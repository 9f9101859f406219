"""Sessions taken back: by commands, by rows that nobody announced, by a counter store that forgot."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.edge.visitors import allow, becomes, new_origin, refused, visit

if TYPE_CHECKING:
    from tests.harness import Gateway


@pytest.mark.parametrize(
    "command",
    [
        ("revoke-session", "{id}"),
        ("revoke-session", "--tenant", "{tenant}"),
        ("disable-tenant", "{tenant}"),
        ("deny-sessions", "{tenant}"),
        ("rotate-session-key", "--at-once"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_within_a_second_it_is_over(gateway: Gateway, tenant: str, command: tuple[str, ...]) -> None:
    visit(gateway, gateway.tenant())  # or the gateway might be one without sessions afterwards
    visitor = visit(gateway, tenant)
    assert visitor.ask().status_code == 200
    gateway.paddock(*(word.format(id=visitor.id, tenant=tenant) for word in command))
    began = time.monotonic()
    response = becomes(401, visitor.ask)
    assert time.monotonic() - began < 10  # a second is promised; the machine may be busy
    refused(response, 401, gateway, "session_invalid" if "rotate" in command[0] else "session_revoked")


def test_revoked_where_the_counters_were_not_asked(gateway: Gateway, tenant: str) -> None:
    """The row in PostgreSQL alone ends a session: every policy follows it."""
    visitor = visit(gateway, tenant)
    gateway.sql(
        "INSERT INTO session_revocation (session_id, expires_at) VALUES ($1, now() + interval '1 hour')", visitor.id
    )
    began = time.monotonic()
    refused(becomes(401, visitor.ask), 401, gateway, "session_revoked")
    assert time.monotonic() - began < 10  # a second is promised; the machine may be busy


def test_forgotten_by_the_counters(gateway: Gateway, tenant: str) -> None:
    """A store that lost its data knows no session: better a new one than one without its limits."""
    visitor = visit(gateway, tenant, "--rpm", "2")
    for _ in range(2):
        assert visitor.ask().status_code == 200
    store = gateway.redis()
    store.delete(*store.scan_iter(f"pd:*s:{visitor.id}"))
    refused(visitor.ask(), 401, gateway, "session_revoked")


def test_an_origin_taken_away(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant)
    allow(gateway, tenant, new_origin())
    gateway.paddock("deny-sessions", tenant, "--origin", visitor.origin)
    refused(becomes(403, visitor.ask), 403, gateway, "session_origin")


def test_a_rotated_key_ends_nothing(gateway: Gateway, tenant: str) -> None:
    visitor = visit(gateway, tenant)
    kids = gateway.paddock("rotate-session-key")
    assert kids["kid"] in kids["verifying"]
    assert len(kids["verifying"]) > 1
    time.sleep(0.5)
    assert visitor.ask().status_code == 200
    assert visit(gateway, tenant, origin=visitor.origin).ask().status_code == 200
