"""Web origins (RFC 6454) and what CORS says about them (the Fetch standard).

An origin is compared as browsers write it, byte for byte; what an operator types is brought into that form once. There
is no wildcard and no `null`: a sandboxed frame and a file have that origin, whoever wrote them.

No cookie is ever involved: the token travels in a header that the page sets, so `Access-Control-Allow-Credentials` is
never sent, and a foreign page gains nothing from being opened in a browser that holds a session.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

Headers = tuple[tuple[str, str], ...]

_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*|\[[0-9a-f:.]{2,45}\]")
_PORTS = {"http": 80, "https": 443}
PREFLIGHT_SECONDS = 600  # how long a browser may remember the answer; the request itself is judged every time

# What a page may send, and what it may read of an answer.
_ASKED = "authorization, content-type, x-request-signature, x-timestamp, x-publishable-key, x-fingerprint"
_EXPOSED = ", ".join(
    (
        "x-request-id", "retry-after", "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests",
        "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-budget-period", "x-budget-tokens-remaining",
    )
)  # fmt: skip


def origin(text: str) -> str:
    """The origin that `text` names, as browsers write it; ValueError, with what to write, where it names none."""
    parts = urlsplit(text.strip())
    if parts.scheme not in _PORTS or parts.hostname is None:
        raise ValueError("an origin is scheme and host, such as https://app.example.com or http://localhost:3000")
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("an origin is scheme, host and port alone: no user, path or query")
    host = f"[{ip_address(parts.hostname)}]" if ":" in parts.hostname else parts.hostname
    if not _HOST.fullmatch(host):
        raise ValueError("the host of an origin is a name in letters, digits and hyphens (punycode), or an address")
    port = parts.port
    return f"{parts.scheme}://{host}" + ("" if port in (None, _PORTS[parts.scheme]) else f":{port}")


def preflight(allowed: str) -> Headers:
    """The answer to a preflight from an origin that may ask."""
    return (
        ("access-control-allow-origin", allowed),
        ("access-control-allow-methods", "GET, POST"),
        ("access-control-allow-headers", _ASKED),
        ("access-control-max-age", str(PREFLIGHT_SECONDS)),
        ("vary", "origin, access-control-request-method, access-control-request-headers"),
    )


def readable(allowed: str) -> Headers:
    """What lets a page of this origin read an answer."""
    return (
        ("access-control-allow-origin", allowed),
        ("access-control-expose-headers", _EXPOSED),
        ("vary", "origin"),
    )
