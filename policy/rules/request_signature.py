"""Request signatures: that a request was made by whoever was given the session's signing key, now, and once.

    X-Timestamp: Unix milliseconds
    X-Request-Signature: v1=<hex HMAC-SHA-256(signing key, method \n path \n timestamp \n hex SHA-256(body))>

A token that leaks from a log or a proxy is of no use without the signing key, which never travels with it. Once is the
counter store's part: it remembers what was seen for as long as a repetition could pass here.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import TYPE_CHECKING

from policy.rules.decision import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

WINDOW = 60  # seconds before and after now
REMEMBERED = 4 * WINDOW  # seconds: the window, both ways, and clocks that are as far apart again
_SIGNATURE = re.compile(r"v1=([0-9a-f]{64})")  # lower case alone: one signature has one spelling
_TIMESTAMP = re.compile(r"[1-9][0-9]{11,14}")


def sign(key: bytes, method: str, path: str, timestamp: str, body: bytes) -> str:
    """The header's value."""
    return f"v1={_digest(key, method, path, timestamp, body)}"


def verify(key: bytes, method: str, path: str, body: bytes, headers: Mapping[str, str], now: float) -> str | Reason:
    """The signature, to be remembered as seen; or why the request is refused. `now` in seconds since the epoch."""
    presented, timestamp = headers.get("x-request-signature", ""), headers.get("x-timestamp", "")
    if not presented or not timestamp:
        return Reason.SIGNATURE_MISSING
    found = _SIGNATURE.fullmatch(presented)
    if found is None or not _TIMESTAMP.fullmatch(timestamp):
        return Reason.SIGNATURE_WRONG
    if not hmac.compare_digest(found[1], _digest(key, method, path, timestamp, body)):
        return Reason.SIGNATURE_WRONG
    if abs(now * 1000 - int(timestamp)) > WINDOW * 1000:
        return Reason.SIGNATURE_STALE
    return found[1]


def _digest(key: bytes, method: str, path: str, timestamp: str, body: bytes) -> str:
    signed = f"{method}\n{path}\n{timestamp}\n{hashlib.sha256(body).hexdigest()}"
    return hmac.digest(key, signed.encode(), "sha256").hex()
