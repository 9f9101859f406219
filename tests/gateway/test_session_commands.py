"""The commands about sessions, as an operator and as a program meet them."""

from __future__ import annotations

import contextlib
import io
import re
from typing import TYPE_CHECKING

import pytest

from gateway import cli

if TYPE_CHECKING:
    from tests.harness import Gateway


def say(gateway: Gateway, *args: str) -> str:
    """What a command prints for a person."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main([*args, "--data-dir", str(gateway.data_dir)]) == 0
    return out.getvalue()


def test_a_policy_begins_with_sane_figures_and_changes_by_name(gateway: Gateway) -> None:
    tenant = gateway.tenant()
    first = gateway.paddock("allow-sessions", tenant, "--origin", "https://One.example/")
    assert first["origins"] == ["https://one.example"]
    assert (first["lifetime_seconds"], first["max_per_fingerprint"], first["models"]) == (1800, 5, None)
    assert (first["fingerprint_policy"], first["signature_policy"]) == ("observe", "legacy")
    assert first["limits"]["session"]["budget_total"] == 100_000
    assert first["limits"]["together"]["budget_day"] == 2_000_000, "nobody wakes up to an emptied budget"
    asked = (
        "--rpm none --budget-total 7 --fingerprint-rpm 8 --address-budget-day 9 --all-budget-month 10 --max-tokens 11 "
        "--fingerprint-policy enforce --signature-policy hmac --entropy-policy require --max-per-fingerprint 2 "
        "--opened-per-minute 3 --max-live 4 --endpoint chat --model a --lifetime 2h --origin https://two.example"
    )
    changed = gateway.paddock("allow-sessions", "--tenant", tenant, *asked.split())
    assert changed["origins"] == ["https://one.example", "https://two.example"]
    assert (changed["models"], changed["endpoints"], changed["lifetime_seconds"]) == (["a:latest"], ["chat"], 7200)
    limits = changed["limits"]
    assert (limits["session"]["rpm"], limits["session"]["tpm"], limits["session"]["budget_total"]) == (None, 20_000, 7)
    assert (limits["fingerprint"]["rpm"], limits["address"]["budget_day"]) == (8, 9)
    assert limits["together"] == {**dict.fromkeys(limits["together"]), "budget_day": 2_000_000, "budget_month": 10}
    assert (changed["max_tokens"], changed["max_per_fingerprint"], changed["opened_per_minute"]) == (11, 2, 3)
    assert gateway.paddock("allow-sessions", tenant, "--all-models")["models"] is None
    (listed,) = gateway.paddock("list-sessions", tenant)["policies"]
    assert listed["signature_policy"] == "hmac"
    left = gateway.paddock("deny-sessions", tenant, "--origin", "https://one.example")
    assert left["origins"] == ["https://two.example"]
    assert gateway.paddock("deny-sessions", tenant)["sessions"] is False
    assert gateway.paddock("list-sessions", tenant)["policies"] == []


def test_what_people_read(gateway: Gateway) -> None:
    tenant = gateway.tenant("--no-models")
    said = say(gateway, "allow-sessions", tenant, "--origin", "http://intra.example", "--model", "a")
    assert f"Tenant {tenant} allows browser sessions." in said
    assert re.search(r"session +rpm 20, tpm 20000, concurrency 4, budget-total 100000", said)
    assert "Note: http://intra.example is not https" in said
    assert f"Note: tenant {tenant} may not use any model yet" in said
    key = say(gateway, "create-publishable-key", tenant, "--label", "shop").split()[0]
    assert re.fullmatch(r"nzp_[0-9A-Za-z]{32}", key)
    shown = say(gateway, "list-sessions", tenant)
    for words in (tenant, "http://intra.example", key, "shop", "active", "No session lives."):
        assert words in shown
    assert "revoked" in say(gateway, "revoke-publishable-key", key)
    assert "revoked" in say(gateway, "list-sessions", tenant)
    assert "signs new sessions" in say(gateway, "rotate-session-key")
    assert "have ended" in say(gateway, "deny-sessions", tenant)


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (("allow-sessions", "{t}"), 1, "say from which --origin"),
        (("allow-sessions", "nobody", "--origin", "https://a.example"), 1, "there is no tenant nobody"),
        (("allow-sessions", "{t}", "--origin", "*"), 1, "is no origin"),
        (("allow-sessions", "{t}", "--origin", "https://a.example/app"), 1, "no user, path or query"),
        (("allow-sessions", "{t}", "--origin", "https://a.example", "--lifetime", "25h"), 2, "from 1m to 24h"),
        (("allow-sessions", "{t}", "--origin", "https://a.example", "--rpm", "-1"), 2, "not a whole number"),
        (("allow-sessions", "{t}", "--origin", "https://a.example", "--max-live", "0"), 2, "not a whole number"),
        (("allow-sessions", "{t}", "--origin", "https://a.example", "--model", "a b"), 1, "not the name of a model"),
        (("deny-sessions", "{t}"), 1, "allows no browser sessions"),
        (("revoke-session", "ns_x"), 1, "ns_ and 22"),
        (("revoke-session",), 2, "say which session"),
        (("revoke-session", "--tenant", "{t}"), 1, "allows no browser sessions"),
        (("revoke-publishable-key", "nzp_unknown"), 1, "no such publishable key"),
        (("create-publishable-key", "nobody"), 1, "there is no tenant nobody"),
        (
            ("allow-sessions", "nz_0123456789abcdef", "--origin", "https://a.example"),
            1,
            "more of a key than its prefix",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_mistakes_are_explained(gateway: Gateway, args: tuple[str, ...], status: int, words: str) -> None:
    tenant = gateway.tenant()
    assert words in gateway.paddock(*(arg.format(t=tenant) for arg in args), status=status)


def test_an_unknown_session_is_taken_back_all_the_same(gateway: Gateway) -> None:
    session = "ns_" + "A" * 22
    assert gateway.paddock("revoke-session", session) == {"session": session, "revoked": True, "live": 0}
    assert "no such session lives" in say(gateway, "revoke-session", session)
    rows = gateway.sql("SELECT expires_at - now() AS left FROM session_revocation WHERE session_id = $1", session)
    assert rows[0]["left"].total_seconds() > 23 * 3600, "for as long as any token of it could be good"
