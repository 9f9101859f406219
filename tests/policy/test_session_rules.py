"""Policies, scopes, origins, publishable keys and the body of POST /session, as values."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.rules import keys, publishable_keys
from policy.rules.addresses import neighbourhood
from policy.rules.decision import Reason
from policy.rules.limits import Limits
from policy.rules.origins import origin, preflight, readable
from policy.rules.session_token import Claims, KeySet, Secret, SigningKey
from policy.rules.sessions import MAX_FINGERPRINT, Directory, SessionPolicy, holder, opening, scopes
from policy.rules.strict_json import NotAcceptable
from policy.rules.tenants import Tenant

NOW = 1_800_000_000.0
ACME = Tenant(1, "acme", models=frozenset({"a:latest", "b:latest"}))
OTHER = Tenant(2, "other", allow_all_models=True)
ORIGIN = "https://app.example.com"
POLICY = SessionPolicy(ACME, frozenset({ORIGIN}))
CLAIMS = Claims("ns_" + "a" * 22, 1, int(NOW), int(NOW) + 1800, "f" * 22, ORIGIN)
SIGNING = KeySet.of([SigningKey.derive(Secret(b"s" * 32), "k", b"1" * 32, 0.0)], NOW, 0)


def directory(*policies: SessionPolicy, **changes: Any) -> Directory:
    held: dict[str, Any] = {"publishable": {}, "revoked": frozenset(), "keys": SIGNING}
    return Directory(policies={policy.tenant.id: policy for policy in policies}, **(held | changes))


def test_off_until_somebody_says_so() -> None:
    assert not directory().on
    assert not directory(POLICY, keys=KeySet({})).on, "without a key nothing can be signed"
    assert directory(POLICY).on


def test_whose_session_it_is() -> None:
    alone = directory(POLICY, publishable={"nzp_1": 1, "nzp_9": 9})
    assert alone.named("", ORIGIN) is POLICY
    assert alone.named("", "https://elsewhere.example.com") is None
    assert alone.named("", "") is None
    assert alone.named("nzp_1", "whatever") is POLICY
    assert alone.named("nzp_9", ORIGIN) is None, "a key of a tenant without sessions opens nothing"
    assert alone.named("nzp_unknown", ORIGIN) is None, "a key that is wrong is not made good by the origin"
    shared = replace(POLICY, tenant=OTHER)
    assert directory(POLICY, shared).named("", ORIGIN) is None
    assert directory(POLICY, shared, publishable={"nzp_2": 2}).named("nzp_2", ORIGIN) is shared


@pytest.mark.parametrize(
    ("policy", "claims", "changes", "now"),
    [
        (replace(POLICY, tenant=replace(ACME, disabled=True)), CLAIMS, {}, NOW),
        (POLICY, CLAIMS, {"revoked": frozenset({CLAIMS.session_id})}, NOW),
        (replace(POLICY, not_before=NOW), CLAIMS, {}, NOW),
        (replace(POLICY, lifetime=600), CLAIMS, {}, NOW + 600),
        (POLICY, replace(CLAIMS, publishable_key="nzp_1"), {}, NOW),
        (POLICY, replace(CLAIMS, publishable_key="nzp_1"), {"publishable": {"nzp_1": 2}}, NOW),
    ],
    ids=["tenant disabled", "revoked", "all revoked", "lifetime shortened", "key revoked", "key of another tenant"],
)
def test_what_ends_a_session(policy: SessionPolicy, claims: Claims, changes: dict[str, Any], now: float) -> None:
    assert directory(policy, **changes).ended(claims, policy, now)


def test_what_does_not_end_it() -> None:
    assert not directory(POLICY).ended(CLAIMS, POLICY, NOW + 1799)
    with_key = replace(CLAIMS, publishable_key="nzp_1")
    assert not directory(POLICY, publishable={"nzp_1": 1}).ended(with_key, POLICY, NOW)


def test_a_session_is_a_child_of_its_tenant() -> None:
    for models, may in ((None, {"a:latest", "b:latest"}), (frozenset({"a:latest", "c:latest"}), {"a:latest"})):
        key = holder(replace(POLICY, models=models), CLAIMS.session_id)
        assert {name for name in ("a:latest", "b:latest", "c:latest") if key.may_use(name)} == may
        assert key.id == -1, "one row a tenant in the ledger, whatever the number of visitors"
        assert key.tenant is ACME
    cloud = holder(replace(POLICY, tenant=OTHER), CLAIMS.session_id)
    assert not cloud.may_use("big:cloud")


def test_scopes_are_of_one_tenant_and_hold_nothing_that_a_client_wrote() -> None:
    mine = scopes(POLICY, CLAIMS, "192.0.2.7")
    assert [scope.name for scope in mine] == [f"s:{CLAIMS.session_id}", f"sf:1:{'f' * 22}", "sa:1:192.0.2.7"]
    assert [scope.keep_ms == 0 for scope in mine] == [True, False, False], "only a session must be there already"
    theirs = scopes(replace(POLICY, tenant=OTHER), replace(CLAIMS, session_id="ns_" + "b" * 22), "192.0.2.7")
    assert not {scope.name for scope in mine} & {scope.name for scope in theirs}
    daily = replace(POLICY, address=Limits(budget_day=1))
    assert scopes(daily, CLAIMS, "x")[2].keep_ms > 24 * 3600 * 1000, "a day's budget outlives the day"


@pytest.mark.parametrize(
    ("address", "counted_as"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("", ""),
        ("not an address", "not an address"),
    ],
)
def test_one_customer_is_one_address(address: str, counted_as: str) -> None:
    assert neighbourhood(address) == counted_as


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("https://app.example.com", ORIGIN),
        (" HTTPS://App.Example.COM/ ", ORIGIN),
        ("https://app.example.com:443", ORIGIN),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://localhost:80/", "http://localhost"),
        ("https://[2001:DB8:0:0::1]:8443", "https://[2001:db8::1]:8443"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
    ],
)
def test_an_origin_is_what_browsers_send(typed: str, sent: str) -> None:
    assert origin(typed) == sent
    assert origin(sent) == sent


@pytest.mark.parametrize(
    "typed",
    ["*", "null", "", "app.example.com", "https://", "https://*.example.com", "https://a.example/path", "ftp://a.example",
     "https://a.example?x", "https://a.example#x", "https://user@a.example", "https://a.example:99999", "https://a b",
     "https://a.example,https://b.example", "https://bücher.example", "https://a..b", "javascript://x", "https://[::1",
     "https://a.example\r\nx: y"],
)  # fmt: skip
def test_no_wildcard_and_no_path(typed: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011, RUF100  # urllib's own for some
        origin(typed)


def test_cors_never_says_everyone_and_never_asks_for_cookies() -> None:
    for headers in (preflight(ORIGIN), readable(ORIGIN)):
        named = dict(headers)
        assert named["access-control-allow-origin"] == ORIGIN
        assert "access-control-allow-credentials" not in named
        assert "origin" in named["vary"]
    assert "x-request-id" in dict(readable(ORIGIN))["access-control-expose-headers"]
    assert "retry-after" in dict(readable(ORIGIN))["access-control-expose-headers"]


def test_publishable_keys_are_no_keys() -> None:
    made = {publishable_keys.mint(os.urandom) for _ in range(50)}
    assert len(made) == 50
    for key in made:
        assert publishable_keys.well_formed(key)
        assert keys.parse(key) is None
        assert not publishable_keys.well_formed(key[:-1] + ("a" if key[-1] != "a" else "b"))
    secret = keys.mint(os.urandom).reveal()
    assert not publishable_keys.well_formed(secret)


def body(**fields: object) -> bytes:
    return json.dumps({"fingerprint": "abc"} | fields).encode()


def test_the_published_body() -> None:
    asked = opening(b'{"fingerprint":"1x3k9","entropyData":{"mouse":[[1,2],[3,4],[1,2]],"keys":["a"],"n":null}}')
    assert (asked.fingerprint, asked.publishable_key, asked.values) == ("1x3k9", "", 5)
    assert opening(body()).values == 0
    assert opening(body(publishableKey="nzp_x", other={"x": 1})).publishable_key == "nzp_x"
    assert opening(body(publishableKey=None, entropyData=None)).values == 0


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"null", b"{}", b'{"fingerprint":""}', b'{"fingerprint":7}', b'{"fingerprint":null}',
     b'{"fingerprint":"a","fingerprint":"b"}', b'{"fingerprint":"a"} ', b'{"fingerprint":"a"}x', b"\xff",
     b'{"fingerprint":"\\ud800"}', json.dumps({"fingerprint": "x" * (MAX_FINGERPRINT + 1)}).encode(),
     body(publishableKey=7), body(entropyData="x" * 17_000),
     b'{"fingerprint":"a","entropyData":' + b"[" * 40 + b"]" * 40 + b"}"],
)  # fmt: skip
def test_other_bodies_are_refused(raw: bytes) -> None:
    if raw == b'{"fingerprint":"a"} ':
        opening(raw)  # space is no matter
        return
    with pytest.raises(NotAcceptable):
        opening(raw)


@given(st.binary(max_size=200))
def test_no_bytes_break_it(raw: bytes) -> None:
    try:
        assert opening(raw).fingerprint
    except NotAcceptable:
        pass


def test_every_reason_has_an_answer() -> None:
    from policy.rules.decision import Deny

    for reason in Reason:
        found = json.loads(Deny(reason).body("id"))
        assert found["error"]["code"] == Deny(reason).status
