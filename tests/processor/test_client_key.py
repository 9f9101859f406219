"""`X-Public-Key`: what the published clients send is read, anything else is refused before it costs anything."""

from __future__ import annotations

import base64
import time
from functools import cache
from urllib.parse import quote, quote_plus

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.client_key import MAX_HEADER_CHARACTERS, parse_client_key
from processor.envelope_refusal import Cause, Refusal

REFUSED = Refusal(Cause.CLIENT_KEY)


@cache
def public(bits: int) -> rsa.RSAPublicKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits).public_key()


def pem(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def wrapped(der: bytes, label: str = "PUBLIC KEY") -> str:
    return f"-----BEGIN {label}-----\n{base64.encodebytes(der).decode()}-----END {label}-----\n"


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_a_key_is_read_in_every_spelling_that_clients_use(bits: int) -> None:
    text = pem(public(bits))
    body = "".join(text.split("\n")[1:-2])
    for header in (
        quote(text),  # the published Python client
        quote(text, safe="~()*!.'"),  # encodeURIComponent
        "".join(f"%{ord(character):02x}" for character in text if bits == 2048) or quote(text),  # everything escaped
        quote(text.strip()),
        quote(text.replace("\n", "\r\n")),
        quote(f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----"),  # WebCrypto's users seldom wrap lines
    ):
        key = parse_client_key(header)
        assert isinstance(key, rsa.RSAPublicKey), header
        assert key == public(bits)


def test_keys_of_other_sizes_are_refused() -> None:
    for bits in (1024, 1536, 2040, 4104):
        assert parse_client_key(quote(pem(public(bits)))) == REFUSED, bits


def test_keys_of_other_kinds_are_refused() -> None:
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    pkcs1 = public(2048).public_bytes(Encoding.PEM, PublicFormat.PKCS1).decode()
    disguised = wrapped(public(2048).public_bytes(Encoding.DER, PublicFormat.PKCS1))
    for text in (pem(curve), pem(edwards), pkcs1, disguised):
        assert parse_client_key(quote(text)) == REFUSED


def der_key(modulus: int, exponent: int) -> bytes:
    """SubjectPublicKeyInfo of any numbers at all, which the library would not write."""

    def tlv(tag: int, content: bytes) -> bytes:
        size = len(content)
        length = bytes([size]) if size < 128 else bytes([0x82]) + size.to_bytes(2, "big")
        return bytes([tag]) + length + content

    def integer(value: int) -> bytes:
        return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))

    numbers = tlv(0x30, integer(modulus) + integer(exponent))
    algorithm = bytes.fromhex("300d06092a864886f70d0101010500")
    return tlv(0x30, algorithm + tlv(3, b"\0" + numbers))


def test_numbers_that_are_no_key_are_refused() -> None:
    good = public(2048).public_numbers().n
    assert isinstance(parse_client_key(quote(wrapped(der_key(good, 65537)))), rsa.RSAPublicKey)  # the helper is right
    assert isinstance(parse_client_key(quote(wrapped(der_key(good, 2**32 - 1)))), rsa.RSAPublicKey)
    for modulus, exponent in (
        (good, 0),
        (good, 1),
        (good, 3),
        (good, 17),
        (good, 65536),
        (good, 65538),
        (good, 2**32 + 1),
        (good, good - 2),  # as long as the modulus: a hundred times the work
        (good + 1, 65537),  # even
        (0, 65537),
        (2**4096 + 1, 65537),
    ):
        assert parse_client_key(quote(wrapped(der_key(modulus, exponent)))) == REFUSED, exponent


def test_der_has_one_spelling() -> None:
    der = public(2048).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for bad in (der + b"\0", der[:-1], b"\x30\x83\x00" + der[2:], der.replace(b"\x05\x00", b"\x05\x01\x00", 1)):
        assert parse_client_key(quote(wrapped(bad))) == REFUSED


def test_text_that_is_not_exactly_one_pem_is_refused() -> None:
    good = pem(public(2048))
    for bad in (
        "",
        "%",
        "%zz",
        "%0",
        "x",
        good,  # not percent-encoded
        quote_plus(good),  # a form's spelling: "+" for a space
        quote(quote(good)),
        quote(good + good),
        quote("explanation\n" + good),
        quote(good + "trailing"),
        quote(good.replace("PUBLIC KEY", "PRIVATE KEY")),
        quote(good.replace("PUBLIC KEY", "CERTIFICATE")),
        quote(good.replace("-----BEGIN", "----BEGIN")),
        quote(good.replace("M", "\0", 1)),
        quote(good.replace("\nM", "\n M", 1)),
        quote(good) + "%00",
        quote(good) + "\n",
        quote(good) + "é",
    ):
        assert parse_client_key(bad) == REFUSED, bad[:80]


@given(st.text(max_size=200) | st.text("%0123456789ABCDEFabcdef-+/= ", max_size=200))
def test_no_text_makes_it_fail(text: str) -> None:
    assert parse_client_key(text) == REFUSED


@settings(max_examples=300)
@given(data=st.data())
def test_no_change_of_a_good_header_makes_it_fail(data: st.DataObject) -> None:
    good = quote(pem(public(2048)))
    at = data.draw(st.integers(0, len(good) - 1))
    changed = good[:at] + data.draw(st.characters(max_codepoint=255)) + good[at + 1 :]
    assert isinstance(parse_client_key(changed), rsa.RSAPublicKey | Refusal)


def test_a_header_of_a_million_characters_costs_nothing() -> None:
    for header in ("A" * 1_000_000, "%41" * 333_333, "%" * 1_000_000, quote(pem(public(2048))) + "%0A" * 333_333):
        begun = time.thread_time()
        assert parse_client_key(header) == REFUSED
        assert time.thread_time() - begun < 0.1  # seconds of CPU; it takes microseconds
    assert parse_client_key("A" * MAX_HEADER_CHARACTERS) == REFUSED
