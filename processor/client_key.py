"""The client's public key, from the `X-Public-Key` header: percent-encoded PEM of an RSA key of 2048 to 4096 bits.

The header is the sender's to write, so every step is bounded by the step before: length, then alphabet, then base64,
then DER, and only then numbers. What is accepted has one spelling, the SubjectPublicKeyInfo that it would be written
as again. The exponent is bounded because it is our CPU that raises to it; the modulus must be odd because OpenSSL
cannot calculate with another. A modulus that is weak in any other way harms none but its owner.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from processor.envelope_refusal import Cause, Refusal
from processor.strict_base64 import decode

MIN_BITS, MAX_BITS = 2048, 4096
MAX_HEADER_CHARACTERS = 3072  # an RSA-4096 key is 800 characters of PEM; each may be escaped into three
_MIN_EXPONENT, _MAX_EXPONENT = 65537, 2**32 - 1
_HEADER = re.compile(r"(?:[!-$&-~]++|%[0-9A-Fa-f]{2})++")  # possessive: no backtracking, whatever is sent
_PEM = re.compile(
    rb"-----BEGIN PUBLIC KEY-----\r?\n"
    rb"([A-Za-z0-9+/]+(?:\r?\n[A-Za-z0-9+/]+)*={0,2})\r?\n"
    rb"-----END PUBLIC KEY-----(?:\r?\n)?"
)


def parse_client_key(header: str) -> rsa.RSAPublicKey | Refusal:
    """The key that answers are sealed to."""
    return Refusal(Cause.CLIENT_KEY) if len(header) > MAX_HEADER_CHARACTERS else _parse(header)


@lru_cache(maxsize=1024)  # a client keeps its key for hours; reading it anew is some 5% of opening an envelope
def _parse(header: str) -> rsa.RSAPublicKey | Refusal:
    if not _HEADER.fullmatch(header):
        return Refusal(Cause.CLIENT_KEY)
    pem = _PEM.fullmatch(unquote_to_bytes(header))
    if pem is None:
        return Refusal(Cause.CLIENT_KEY)
    try:
        der = decode(pem[1].decode("ascii").replace("\r", "").replace("\n", ""))
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        return Refusal(Cause.CLIENT_KEY)
    if not isinstance(key, rsa.RSAPublicKey) or not _is_sane(key):
        return Refusal(Cause.CLIENT_KEY)
    # The loader also takes PKCS#1 and other identifiers of RSA; only what it would write itself is the format's.
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != der:
        return Refusal(Cause.CLIENT_KEY)
    return key


def _is_sane(key: rsa.RSAPublicKey) -> bool:
    if not MIN_BITS <= key.key_size <= MAX_BITS:
        return False
    numbers = key.public_numbers()
    return _MIN_EXPONENT <= numbers.e <= _MAX_EXPONENT and numbers.e % 2 == 1 and numbers.n % 2 == 1
