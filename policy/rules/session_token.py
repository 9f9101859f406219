"""Session tokens: JSON Web Tokens (RFC 7519) in one fixed form of JWS (RFC 7515), made and read by policy alone.

    base64url({"alg":"HS256","kid":"…","typ":"JWT"}) . base64url(claims) . base64url(HMAC-SHA-256)

Whoever verifies a token also signs, so a shared key is right, and costs two microseconds. A token's first part is
compared byte for byte with the only header that we write under one of our keys: no header of anybody else's is ever
parsed, so there is no algorithm to confuse, no `jwk` or `jku` to follow and no `crit` to miss. The last part is
compared as text, so that one token has one spelling. Claims are read after the signature, never before.

A key is derived (HMAC-SHA-256 as in HKDF, RFC 5869) from a secret that lies in a file and a salt that lies in
PostgreSQL: neither a backup of the one nor a copy of the other can sign. A rotation is a new salt.
"""

from __future__ import annotations

import hmac
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policy.rules.decision import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ISSUER = "paddock"
AUDIENCE = "paddock/openai"
ID_PREFIX = "ns_"
SALT_BYTES = 32
MAX_LIFETIME = 24 * 3600  # seconds
CLOCK_SKEW = 30  # seconds that the clocks of two policies may be apart
MAX_LENGTH = 2048  # characters; what we write stays under 700
_MIN_SECRET = 32  # bytes
_KID = re.compile(r"[A-Za-z0-9_-]{1,32}")
SESSION_ID = re.compile(rf"{ID_PREFIX}[A-Za-z0-9_-]{{22}}")
FINGERPRINT_LENGTH = 22  # characters of base64url: 128 bits


def base64url(data: bytes) -> str:
    """Without padding, as JOSE has it."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


class Secret:
    """The root of all session keys, from a file. It does not print."""

    __slots__ = ("_bytes", "_fingerprints")

    def __init__(self, content: bytes) -> None:
        """`content` is what the file holds; ValueError where that is too short to be a secret."""
        self._bytes = content.strip()
        if len(self._bytes) < _MIN_SECRET:
            raise ValueError(f"a session secret has at least {_MIN_SECRET} bytes")
        self._fingerprints = self.derive("fingerprint")

    def derive(self, purpose: str, context: bytes = b"") -> bytes:
        """32 bytes for one purpose."""
        return hmac.digest(self._bytes, b"paddock v1\n" + purpose.encode() + b"\n" + context, "sha256")

    def fingerprint(self, tenant_id: int, text: str) -> str:
        """What is kept of a client's fingerprint: it cannot be turned back, nor compared between tenants."""
        digest = hmac.digest(self._fingerprints, f"{tenant_id}\n{text}".encode(), "sha256")
        return base64url(digest[:16])

    def __repr__(self) -> str:
        return "Secret(…)"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key by its `kid`."""

    kid: str
    header: str  # the first part of every token that it signs
    created_at: float  # seconds since the epoch
    _token: bytes = field(repr=False)
    _requests: bytes = field(repr=False)

    @classmethod
    def derive(cls, secret: Secret, kid: str, salt: bytes, created_at: float) -> SigningKey:
        if not _KID.fullmatch(kid) or len(salt) < SALT_BYTES:
            raise ValueError("not a session key")
        header = base64url(f'{{"alg":"HS256","kid":"{kid}","typ":"JWT"}}'.encode())
        context = kid.encode() + b"\n" + salt
        return cls(kid, header, created_at, secret.derive("token", context), secret.derive("request", context))

    def signature(self, signed: str) -> str:
        """The last part, over the first two."""
        return base64url(hmac.digest(self._token, signed.encode("ascii"), "sha256"))

    def request_key(self, session_id: str) -> bytes:
        """32 bytes that a session signs its requests with: derived each time, stored nowhere."""
        return hmac.digest(self._requests, session_id.encode("ascii"), "sha256")

    def request_key_text(self, session_id: str) -> str:
        """The same as the session is told it, once."""
        return base64url(self.request_key(session_id))


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys in force: each verifies, one signs."""

    by_header: dict[str, SigningKey]
    signs: SigningKey | None = None

    @classmethod
    def of(cls, keys: Iterable[SigningKey], now: float, settled: float) -> KeySet:
        """A key signs when it has been known for `settled` seconds, that is, to every policy; the first one at once."""
        found = sorted(keys, key=lambda key: key.created_at)
        known = [key for key in found if key.created_at <= now - settled]
        return cls({key.header: key for key in found}, known[-1] if known else found[0] if found else None)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says. Nothing in it is a secret, and nothing in it is believed without its signature."""

    session_id: str
    tenant_id: int
    issued_at: int  # seconds since the epoch
    expires_at: int
    fingerprint: str  # its digest; see `Secret.fingerprint`
    origin: str
    publishable_key: str = ""  # that named the tenant; "" where its origin did


@dataclass(frozen=True, slots=True)
class Expired:
    """A token of ours whose time is over: believed for nothing but whose it was, which the audit log tells."""

    claims: Claims


def new_session_id(random: Callable[[int], bytes]) -> str:
    return ID_PREFIX + base64url(random(16))


def sign(claims: Claims, key: SigningKey) -> str:
    """The token."""
    payload = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": str(claims.tenant_id), "jti": claims.session_id,
        "iat": claims.issued_at, "exp": claims.expires_at, "fp": claims.fingerprint, "org": claims.origin,
    }  # fmt: skip
    if claims.publishable_key:
        payload["pk"] = claims.publishable_key
    signed = f"{key.header}.{base64url(json.dumps(payload, separators=(',', ':')).encode())}"
    return f"{signed}.{key.signature(signed)}"


def verify(token: str, keys: KeySet, now: float) -> tuple[Claims, SigningKey] | Expired | Reason:
    """What the token says, and under which key; or why it is not believed. `now` in seconds since the epoch."""
    if len(token) > MAX_LENGTH or not token.isascii():
        return Reason.SESSION_INVALID
    signed, _, signature = token.rpartition(".")
    header, _, payload = signed.partition(".")
    key = keys.by_header.get(header)
    if key is None or not hmac.compare_digest(key.signature(signed), signature):
        return Reason.SESSION_INVALID
    # From here on the token is one that we wrote, perhaps as an older version: still, everything is looked at.
    try:
        claims = _claims(payload)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return Reason.SESSION_INVALID
    if claims.issued_at > now + CLOCK_SKEW:
        return Reason.SESSION_INVALID
    return Expired(claims) if now >= claims.expires_at else (claims, key)


def _claims(payload: str) -> Claims:
    held = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    if held["iss"] != ISSUER or held["aud"] != AUDIENCE:
        raise ValueError("not for us")
    if type(held["iat"]) is not int or type(held["exp"]) is not int:
        raise ValueError("no times")
    if not 0 < held["exp"] - held["iat"] <= MAX_LIFETIME or not SESSION_ID.fullmatch(held["jti"]):
        raise ValueError("no session")
    texts = (held["fp"], held["org"], held.get("pk", ""))
    if not all(type(text) is str for text in texts):
        raise ValueError("not text")
    return Claims(held["jti"], int(held["sub"]), held["iat"], held["exp"], *texts)
