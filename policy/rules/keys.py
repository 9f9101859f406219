"""API keys: their grammar, how one is made, and the digest under which a verified one is remembered.

    nz_ + 9 base62 + 26 base62 + 6 base62
    └── prefix ──┘   └ secret ┘  └ CRC-32 of all that goes before ┘

The checksum is no secret and no proof: it lets typing errors and garbage be refused without a look-up. 35 random
characters of base62 carry 208 bits; what keeps a key safe is argon2id at rest and the rate of attempts. Publishable
keys (`nzp_…`, see `publishable_keys`) have a grammar of their own: nothing of it is accepted here.
"""

from __future__ import annotations

import hmac
import re
import zlib
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KIND = "nz_"
PREFIX_LENGTH = 12  # with the kind: stored in the clear, indexed, shown
KEY_LENGTH = 44

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CHECKSUM_LENGTH = 6  # 62**6 > 2**32: a CRC-32 fits
_RANDOM_LENGTH = KEY_LENGTH - len(KIND) - CHECKSUM_LENGTH
_GRAMMAR = re.compile(rf"{KIND}[0-9A-Za-z]{{{KEY_LENGTH - len(KIND)}}}")
_BEARER = re.compile(r"bearer +([^\s,]+) *", re.IGNORECASE)
_MIN_PEPPER = 16  # bytes


class ApiKey:
    """A well-formed key, made by `mint` and `parse` alone. It does not print, pickle or hash; `reveal` shows it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    @property
    def prefix(self) -> str:
        """The first 12 characters: not secret."""
        return self._text[:PREFIX_LENGTH]

    def reveal(self) -> str:
        """The whole key. For the person it is made for, and for the hash function; never for a log."""
        return self._text

    def __repr__(self) -> str:
        return f"ApiKey({self.prefix}…)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ApiKey) and hmac.compare_digest(self._text, other._text)

    __hash__ = None  # type: ignore[assignment]  # a dict of keys would hold secrets: keep digests

    def __reduce__(self) -> NoReturn:
        raise TypeError("an API key is not to be pickled or copied")


def mint(random: Callable[[int], bytes]) -> ApiKey:
    """A new key from `random(n)`, n bytes of a cryptographic source such as os.urandom."""
    body = KIND + "".join(letters(random, _RANDOM_LENGTH))
    return ApiKey(body + checksum(body))


def parse(presented: str) -> ApiKey | None:
    """The key, or None for anything that no `mint` could have made; a near miss takes no longer than a key."""
    if len(presented) != KEY_LENGTH or not _GRAMMAR.fullmatch(presented):
        return None
    expected = checksum(presented[:-CHECKSUM_LENGTH])
    return ApiKey(presented) if expected == presented[-CHECKSUM_LENGTH:] else None


def digest(key: ApiKey, pepper: bytes) -> bytes:
    """HMAC-SHA-256 of the key: what a cache of verified keys is indexed by. `pepper` is random per process."""
    if len(pepper) < _MIN_PEPPER:
        raise ValueError(f"a pepper has at least {_MIN_PEPPER} bytes")
    return hmac.digest(pepper, key.reveal().encode("ascii"), "sha256")


def credential(headers: Mapping[str, str]) -> str | None:
    """What the caller presents as its key: None for nothing, "" for something that cannot be one.

    `headers` have lower-case names. The Ollama and OpenAI SDKs send `authorization: Bearer`, the Anthropic SDKs
    `x-api-key`. Two different credentials are refused: which of them a later reader would believe is anybody's guess.
    """
    authorization = headers.get("authorization", "").strip(" \t")
    api_key = headers.get("x-api-key", "").strip(" \t")
    if not authorization:
        return api_key or None
    bearer = _BEARER.fullmatch(authorization)
    token = bearer[1] if bearer else ""
    return token if api_key in ("", token) else ""


def checksum(body: str) -> str:
    """CRC-32 of `body` in six letters of base62."""
    value = zlib.crc32(body.encode("ascii"))
    found = []
    for _ in range(CHECKSUM_LENGTH):
        value, rest = divmod(value, 62)
        found.append(_ALPHABET[rest])
    return "".join(reversed(found))


def letters(random: Callable[[int], bytes], count: int) -> list[str]:
    """`count` random letters of base62. Unbiased: bytes from 248 up are thrown away, since 256 is no multiple of 62."""
    found: list[str] = []
    for _ in range(100):
        found += [_ALPHABET[byte % 62] for byte in random(count) if byte < 248]
        if len(found) >= count:
            return found[:count]
    raise ValueError("the random source does not look random")
