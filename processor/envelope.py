"""The encrypted package of `docs/reference/envelope-protocol.md`: open a request, seal an answer. Pure.

Opening is two steps of different kinds. `parse` judges what anyone on the way can read, and refuses early and
cheaply: nothing it does depends on a secret. What then depends on the private keys is the same work for every
package that fails: each key in force takes one RSA operation and one pass of AES-GCM, and where the RSA padding is
wrong the pass is made with a random key (implicit rejection), so that padding, tag and wrong key look alike from
outside. A package that opens stops at the key that opened it: for the current key that is one RSA operation, whatever
grace period runs. How long an *accepted* package took tells which key the client used, which the client knows.

RSA releases the interpreter's lock and costs milliseconds: call `open_package` and `seal` in a worker thread. Both
work on their arguments alone; any number of threads may.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Protocol, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256

from processor import strict_base64
from processor.envelope_refusal import Cause, Refusal
from processor.memory import wipe, wipe_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

VERSION = "1.0"
ALGORITHM = "hybrid-aes256-rsa4096"
KEY_ALGORITHM = "RSA-OAEP-SHA256"
PAYLOAD_ALGORITHM = "AES-256-GCM"
KEY_BYTES, NONCE_BYTES, TAG_BYTES, WRAPPED_BYTES = 32, 12, 16, 512
MAX_PLAINTEXT_BYTES = 10 * 1024 * 1024  # the published client's own bound
MAX_PACKAGE_BYTES = 16 * 1024 * 1024  # that in base64, with room for JSON that escapes every "/" and "+"

OAEP = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)
_REQUIRED = {"version", "algorithm", "encrypted_payload", "encrypted_aes_key"}
_OPTIONAL = {"key_algorithm", "payload_algorithm"}
_PAYLOAD = {"ciphertext", "nonce", "tag"}


class Unwraps(Protocol):
    """What is used of an RSA private key."""

    def decrypt(self, ciphertext: bytes, padding: padding.AsymmetricPadding) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Package:
    """A package as parsed: the sizes of nonce, tag and wrapped key are right, nothing else is known."""

    sealed: bytes  # ciphertext and tag together, as AES-GCM is usually handed over
    nonce: bytes
    wrapped_key: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """An opened package. Leaving its `with` block overwrites both secrets; neither is ever printed."""

    plaintext: bytearray = field(repr=False)
    request_key: bytearray = field(repr=False)  # the package's AES key: an encrypted stream is bound to it
    generation: int = 0  # which of the keys opened it: 0 is the current one
    wrapped_key: bytes = field(default=b"", repr=False)  # as it stands in the package

    def wipe(self) -> None:
        wipe(self.plaintext)
        wipe(self.request_key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()


class _Malformed(Exception):
    def __init__(self, cause: Cause) -> None:
        super().__init__(cause)
        self.cause = cause


def open_package(
    package: bytes | bytearray, keys: Sequence[Unwraps], *, random: Callable[[int], bytes]
) -> Opened | Refusal:
    """Open a request's package with the keys in force, the current one first.

    `random(n)` returns n unpredictable bytes; it makes the key of an implicit rejection.
    """
    parsed = parse(package)
    if isinstance(parsed, Refusal):
        return parsed
    for generation, key in enumerate(keys):
        secret, unwrapped = _unwrap(key, parsed.wrapped_key, random)
        plaintext = _decipher(parsed, secret)
        if plaintext is not None and unwrapped:
            return Opened(plaintext, secret, generation, parsed.wrapped_key)
        wipe(secret)
    return Refusal(Cause.UNDECIPHERABLE)


def parse(package: bytes | bytearray) -> Package | Refusal:
    """Read the package's form, strictly: one spelling, nothing missing, repeated or unknown.

    Unknown fields are refused: nothing outside the ciphertext is authenticated, and what a field means is the version's
    to say.
    """
    if len(package) > MAX_PACKAGE_BYTES:
        return Refusal(Cause.TOO_LARGE)
    try:
        return _package(_read_object(package))
    except _Malformed as malformed:
        return Refusal(malformed.cause)


def seal(
    plaintext: bytes | bytearray, client_key: RSAPublicKey, *, random: Callable[[int], bytes], processed_at: int
) -> bytes:
    """A response's package for the client. `processed_at` is in Unix seconds.

    `random` makes the AES key and the nonce; the randomness of RSA-OAEP is the library's own.
    """
    key, nonce = bytearray(random(KEY_BYTES)), random(NONCE_BYTES)
    try:
        sealed = memoryview(AESGCM(key).encrypt(nonce, plaintext, None))
        wrapped = wrap(key, client_key)
    finally:
        wipe(key)
    package = {
        "version": VERSION,
        "algorithm": ALGORITHM,
        "encrypted_payload": {
            "ciphertext": strict_base64.encode(sealed[:-TAG_BYTES]),
            "nonce": strict_base64.encode(nonce),
            "tag": strict_base64.encode(sealed[-TAG_BYTES:]),
        },
        "encrypted_aes_key": strict_base64.encode(wrapped),
        "key_algorithm": KEY_ALGORITHM,
        "payload_algorithm": PAYLOAD_ALGORITHM,
        "processed_at": processed_at,
    }
    return json.dumps(package).encode("ascii")


def wrap(secret: bytearray, client_key: RSAPublicKey) -> bytes:
    """A 32-byte secret for the client. The library takes `bytes` only: the copy is overwritten after use."""
    copy = bytes(secret)
    try:
        return client_key.encrypt(copy, OAEP)
    finally:
        wipe_bytes(copy)


def _unwrap(key: Unwraps, wrapped: bytes, random: Callable[[int], bytes]) -> tuple[bytearray, bool]:
    """The package's AES key and True, or a random key and False: the caller goes on alike."""
    substitute = random(KEY_BYTES)
    try:
        secret = key.decrypt(wrapped, OAEP)
    except ValueError:
        return bytearray(substitute), False
    if len(secret) != KEY_BYTES:
        return bytearray(substitute), False
    found = bytearray(secret)
    wipe_bytes(secret)
    return found, True


def _decipher(package: Package, secret: bytearray) -> bytearray | None:
    """The plaintext, in a buffer that can be overwritten; None, with the buffer overwritten, if the tag is wrong."""
    buffer = bytearray(len(package.sealed) - TAG_BYTES)
    try:
        AESGCM(secret).decrypt_into(package.nonce, package.sealed, None, buffer)
    except InvalidTag:
        wipe(buffer)
        return None
    return buffer


def _read_object(package: bytes | bytearray) -> Mapping[str, object]:
    try:
        text = str(package, "ascii")  # every field is, so that any other character is a mistake in some field
    except UnicodeDecodeError:
        raise _Malformed(Cause.NOT_JSON) from None
    # No value of ours contains these characters: their number bounds what the reader below can be made to build.
    if text.count("[") or text.count("{") != 2 or text.count(",") > len(_REQUIRED | _OPTIONAL | _PAYLOAD) - 2:
        raise _Malformed(Cause.FIELDS)
    try:
        value = _READER.decode(text)
    except ValueError:
        raise _Malformed(Cause.NOT_JSON) from None
    if not isinstance(value, dict):
        raise _Malformed(Cause.NOT_JSON)
    return value


def _package(fields: Mapping[str, object]) -> Package:
    payload = fields.get("encrypted_payload")
    if not _REQUIRED <= fields.keys() <= _REQUIRED | _OPTIONAL:
        raise _Malformed(Cause.FIELDS)
    if not isinstance(payload, dict) or payload.keys() != _PAYLOAD:
        raise _Malformed(Cause.FIELDS)
    if fields["version"] != VERSION:
        raise _Malformed(Cause.VERSION)
    if (
        fields["algorithm"] != ALGORITHM
        or fields.get("key_algorithm", KEY_ALGORITHM) != KEY_ALGORITHM
        or fields.get("payload_algorithm", PAYLOAD_ALGORITHM) != PAYLOAD_ALGORITHM
    ):
        raise _Malformed(Cause.ALGORITHM)
    return Package(
        sealed=_binary(payload["ciphertext"], 1, MAX_PLAINTEXT_BYTES) + _binary(payload["tag"], TAG_BYTES, TAG_BYTES),
        nonce=_binary(payload["nonce"], NONCE_BYTES, NONCE_BYTES),
        wrapped_key=_binary(fields["encrypted_aes_key"], WRAPPED_BYTES, WRAPPED_BYTES),
    )


def _binary(value: object, least: int, most: int) -> bytes:
    if not isinstance(value, str):
        raise _Malformed(Cause.FIELDS)
    if len(value) > (most + 2) // 3 * 4:
        raise _Malformed(Cause.TOO_LARGE if most == MAX_PLAINTEXT_BYTES else Cause.ENCODING)
    try:
        data = strict_base64.decode(value)
    except ValueError:
        raise _Malformed(Cause.ENCODING) from None
    if not least <= len(data) <= most:
        raise _Malformed(Cause.ENCODING)
    return data


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _Malformed(Cause.FIELDS)
    return fields


def _no_number(_: str) -> NoReturn:
    raise _Malformed(Cause.FIELDS)


_READER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_no_number, parse_float=_no_number, parse_constant=_no_number
)
