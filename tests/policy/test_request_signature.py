"""Request signatures: over everything that matters, inside their minute, in one spelling."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from policy.rules.decision import Reason
from policy.rules.request_signature import REMEMBERED, WINDOW, sign, verify

KEY = b"k" * 32
NOW = 1_800_000_000.0
AT = str(int(NOW * 1000))
BODY = b'{"model":"a"}'
PATH = "/openai/chat/completions"
GOOD = sign(KEY, "POST", PATH, AT, BODY)


def headers(signature: str = GOOD, timestamp: str = AT) -> dict[str, str]:
    return {"x-request-signature": signature, "x-timestamp": timestamp}


def test_it_is_what_the_note_says() -> None:
    text = f"POST\n{PATH}\n{AT}\n{hashlib.sha256(BODY).hexdigest()}"
    assert f"v1={hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest()}" == GOOD
    assert verify(KEY, "POST", PATH, BODY, headers(), NOW) == GOOD.removeprefix("v1=")


@pytest.mark.parametrize(
    ("key", "method", "path", "body", "timestamp"),
    [
        (b"x" * 32, "POST", PATH, BODY, AT),
        (KEY, "GET", PATH, BODY, AT),
        (KEY, "POST", "/openai/completions", BODY, AT),
        (KEY, "POST", PATH, BODY + b" ", AT),
        (KEY, "POST", PATH, b"", AT),
        (KEY, "POST", PATH, BODY, str(int(AT) + 1)),
    ],
)
def test_everything_is_signed(key: bytes, method: str, path: str, body: bytes, timestamp: str) -> None:
    assert verify(key, method, path, body, headers(timestamp=timestamp), NOW) is Reason.SIGNATURE_WRONG


@pytest.mark.parametrize("missing", ["x-request-signature", "x-timestamp"])
def test_both_headers_are_needed(missing: str) -> None:
    some = {name: value for name, value in headers().items() if name != missing}
    assert verify(KEY, "POST", PATH, BODY, some, NOW) is Reason.SIGNATURE_MISSING


@pytest.mark.parametrize(
    "signature",
    [GOOD.upper(), GOOD.removeprefix("v1="), "v1=" + GOOD[3:].upper(), GOOD + " ", f"{GOOD},{GOOD}", "v1=",
     "v2" + GOOD[2:], GOOD[:-1], "v1=" + "0" * 64, "1a2b3c"],
)  # fmt: skip
def test_one_signature_has_one_spelling(signature: str) -> None:
    assert verify(KEY, "POST", PATH, BODY, headers(signature), NOW) is Reason.SIGNATURE_WRONG


@pytest.mark.parametrize("timestamp", ["0", "-1", "1e12", " " + AT, "0" + AT, AT + "0000", "١٨٠٠٠٠٠٠٠٠٠٠٠", "now"])
def test_one_timestamp_has_one_spelling(timestamp: str) -> None:
    signature = sign(KEY, "POST", PATH, timestamp, BODY)
    assert verify(KEY, "POST", PATH, BODY, headers(signature, timestamp), NOW) is Reason.SIGNATURE_WRONG


def test_a_minute_before_and_after() -> None:
    for apart in (-float(WINDOW), float(WINDOW)):
        assert verify(KEY, "POST", PATH, BODY, headers(), NOW + apart) == GOOD.removeprefix("v1=")
    for apart in (-WINDOW - 0.001, WINDOW + 0.001, 1e9, -1e9):
        assert verify(KEY, "POST", PATH, BODY, headers(), NOW + apart) is Reason.SIGNATURE_STALE
    assert REMEMBERED >= 2 * WINDOW, "what was seen is remembered for longer than it could pass again"
