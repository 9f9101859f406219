"""Session tokens: ours pass, and nothing else does, whatever is bent in it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.rules.decision import Reason
from policy.rules.session_token import (
    CLOCK_SKEW,
    MAX_LENGTH,
    MAX_LIFETIME,
    SESSION_ID,
    Claims,
    Expired,
    KeySet,
    Secret,
    SigningKey,
    base64url,
    new_session_id,
    sign,
    verify,
)

NOW = 1_800_000_000.0
SECRET = Secret(b"s" * 32)
KEY = SigningKey.derive(SECRET, "one", b"1" * 32, NOW - 1000)
OTHER = SigningKey.derive(SECRET, "two", b"2" * 32, NOW - 10)
KEYS = KeySet.of([KEY], NOW, 0)
CLAIMS = Claims(new_session_id(os.urandom), 7, int(NOW), int(NOW) + 1800, "f" * 22, "https://app.example.com", "nzp_x")
TOKEN = sign(CLAIMS, KEY)


def part(value: object) -> str:
    return base64url(json.dumps(value, separators=(",", ":")).encode())


def signed(payload: object, key: SigningKey = KEY) -> str:
    """A token of ours that says something else: only whoever has the key can make it."""
    text = f"{key.header}.{payload if isinstance(payload, str) else part(payload)}"
    return f"{text}.{key.signature(text)}"


def payload(**changes: Any) -> dict[str, Any]:
    held = json.loads(base64.urlsafe_b64decode(TOKEN.split(".")[1] + "=="))
    return {name: value for name, value in (held | changes).items() if value is not ...}


def test_a_token_says_what_was_put_in() -> None:
    assert verify(TOKEN, KEYS, NOW) == (CLAIMS, KEY)
    without = replace(CLAIMS, publishable_key="")
    assert verify(sign(without, KEY), KEYS, NOW) == (without, KEY)


def test_it_is_a_plain_jwt_to_any_other_reader() -> None:
    """By RFC 7515, without our code: three parts of base64url, and HMAC-SHA-256 over the first two."""
    header, body, signature = TOKEN.split(".")
    assert json.loads(base64.urlsafe_b64decode(header + "==")) == {"alg": "HS256", "kid": "one", "typ": "JWT"}
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    assert claims["iss"] == "paddock"
    assert claims["aud"] == "paddock/openai"
    assert (claims["exp"], claims["iat"], claims["jti"]) == (CLAIMS.expires_at, CLAIMS.issued_at, CLAIMS.session_id)
    root = hmac.digest(b"s" * 32, b"paddock v1\ntoken\none\n" + b"1" * 32, "sha256")
    expected = hmac.new(root, f"{header}.{body}".encode(), hashlib.sha256).digest()
    assert base64.urlsafe_b64decode(signature + "==") == expected
    assert len(TOKEN) < 700


@pytest.mark.parametrize("place", range(len(TOKEN)))
def test_every_letter_counts(place: int) -> None:
    """Every bit of every letter, the last one's idle bits too: one token has one spelling."""
    for bit in range(8):
        letter = chr(ord(TOKEN[place]) ^ (1 << bit))
        bent = TOKEN[:place] + letter + TOKEN[place + 1 :]
        assert verify(bent, KEYS, NOW) is Reason.SESSION_INVALID


@given(st.text(max_size=3000))
def test_anything_else_is_refused(text: str) -> None:
    assert verify(text, KEYS, NOW) is Reason.SESSION_INVALID


@given(st.lists(st.sampled_from([*TOKEN.split("."), "", "e30", part({"alg": "none"})]), max_size=6))
def test_no_other_arrangement_of_its_parts_passes(parts: list[str]) -> None:
    text = ".".join(parts)
    assert text == TOKEN or verify(text, KEYS, NOW) is Reason.SESSION_INVALID


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "kid": "one", "typ": "JWT"},
        {"alg": "HS384", "kid": "one", "typ": "JWT"},
        {"alg": "RS256", "kid": "one", "typ": "JWT"},
        {"alg": "HS256", "kid": "one"},
        {"alg": "HS256", "typ": "JWT"},
        {"alg": "HS256", "kid": "two", "typ": "JWT"},
        {"alg": "HS256", "kid": "../../dev/null", "typ": "JWT"},
        {"typ": "JWT", "alg": "HS256", "kid": "one"},
        {"alg": "HS256", "kid": "one", "typ": "JWT", "crit": ["exp"]},
        {"alg": "HS256", "kid": "one", "typ": "JWT", "jwk": {"kty": "oct", "k": ""}},
    ],
)
def test_no_header_but_our_own_is_read(header: dict[str, object]) -> None:
    """Even signed with the right key: a header that we would not write is nobody's."""
    text = f"{part(header)}.{TOKEN.split('.')[1]}"
    assert verify(f"{text}.{KEY.signature(text)}", KEYS, NOW) is Reason.SESSION_INVALID
    assert verify(f"{text}.", KEYS, NOW) is Reason.SESSION_INVALID


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "somebody"},
        {"aud": "another"},
        {"aud": ["paddock/openai"]},
        {"iss": ...},
        {"aud": ...},
        {"exp": ...},
        {"iat": ...},
        {"jti": ...},
        {"sub": ...},
        {"fp": ...},
        {"org": ...},
        {"exp": "9999999999"},
        {"exp": float(int(NOW)) + 60.5},
        {"exp": True},
        {"exp": int(NOW) + MAX_LIFETIME + 1},
        {"exp": int(NOW)},
        {"iat": int(NOW) + CLOCK_SKEW + 1},
        {"jti": "ns_short"},
        {"jti": "ns_" + "a" * 21 + "*"},
        {"jti": 7},
        {"sub": "acme"},
        {"fp": 1},
        {"org": None},
        {"pk": 7},
    ],
)
def test_claims_are_checked_though_signed(changes: dict[str, Any]) -> None:
    assert verify(signed(payload(**changes)), KEYS, NOW) is Reason.SESSION_INVALID


@pytest.mark.parametrize("text", ["", "e30", "W10", "bnVsbA", "!!!!", base64url(b"\xff\xfe"), part("x" * 3000)])
def test_what_is_no_object_of_claims_is_refused(text: str) -> None:
    assert verify(signed(text), KEYS, NOW) is Reason.SESSION_INVALID


def test_time() -> None:
    assert verify(TOKEN, KEYS, NOW - CLOCK_SKEW) == (CLAIMS, KEY), "clocks may differ a little"
    assert verify(TOKEN, KEYS, NOW - CLOCK_SKEW - 1) is Reason.SESSION_INVALID
    assert verify(TOKEN, KEYS, NOW + 1799.9) == (CLAIMS, KEY)
    assert verify(TOKEN, KEYS, NOW + 1800) == Expired(CLAIMS)
    assert verify(TOKEN, KEYS, 1e12) == Expired(CLAIMS)


def test_length_is_bounded() -> None:
    assert verify(signed(payload(org="x" * MAX_LENGTH)), KEYS, NOW) is Reason.SESSION_INVALID


def test_keys_take_turns() -> None:
    both = KeySet.of([KEY, OTHER], NOW, settled=5)
    assert both.signs is OTHER
    assert verify(TOKEN, both, NOW) == (CLAIMS, KEY), "the old one verifies"
    assert verify(sign(CLAIMS, OTHER), both, NOW) == (CLAIMS, OTHER)
    assert verify(sign(CLAIMS, OTHER), KEYS, NOW) is Reason.SESSION_INVALID
    assert KeySet.of([KEY, OTHER], NOW, settled=60).signs is KEY, "a new key waits until every policy knows it"
    assert KeySet.of([OTHER], NOW, settled=60).signs is OTHER, "unless there is no other"
    assert KeySet.of([], NOW, settled=60).signs is None


def test_keys_depend_on_everything() -> None:
    secrets = [SECRET, Secret(b"t" * 32)]
    keys = [
        SigningKey.derive(secret, kid, salt, 0.0)
        for secret in secrets
        for kid in ("a", "b")
        for salt in (b"1" * 32, b"2" * 32)
    ]
    assert len({key.signature("x.y") for key in keys}) == len(keys)
    assert len({key.request_key("ns_x") for key in keys}) == len(keys)
    assert keys[0].request_key("ns_x") != keys[0].request_key("ns_y")
    assert len(keys[0].request_key("ns_x")) == 32


def test_secrets_do_not_print() -> None:
    shown = f"{SECRET!r} {SECRET} {KEY!r} {KEYS!r}"
    assert "ssss" not in shown
    for part_of in (KEY._token, KEY._requests):
        assert repr(part_of) not in shown
    with pytest.raises(ValueError, match="at least 32"):
        Secret(b"s" * 31 + b"\n")


def test_fingerprints_are_apart_and_plain() -> None:
    seen = {SECRET.fingerprint(tenant, text) for tenant in (1, 2) for text in ("a", "b", "a\n", "\n1\na", "x" * 512)}
    assert len(seen) == 10
    for digest in seen:
        assert len(digest) == 22
        assert digest.replace("-", "").replace("_", "").isalnum(), "safe in the name of a counter"
    assert SECRET.fingerprint(1, "}{s00}:*\r\nFLUSHALL\r\n").isascii()


def test_session_ids() -> None:
    found = {new_session_id(os.urandom) for _ in range(100)}
    assert len(found) == 100
    assert all(SESSION_ID.fullmatch(one) for one in found)
