"""Envelopes: the package, its headers, base64 with one spelling, and the records of an encrypted stream."""

from __future__ import annotations

import base64
import json
import os
import re
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from processor import envelope, strict_base64
from processor.client_key import MAX_BITS, MIN_BITS, parse_client_key
from processor.envelope_headers import parse_payload_id, parse_stream
from processor.envelope_refusal import Refusal
from processor.envelope_stream import PAD_BYTES, RECORD, RecordSealer, StreamSealer
from tests.hostile.targets.cutting import chance

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

_FIELDS = ("version", "algorithm", "encrypted_payload", "encrypted_aes_key", "key_algorithm", "payload_algorithm")


@lru_cache(maxsize=1)
def _private() -> RSAPrivateKey:
    return rsa.generate_private_key(65537, 4096)


@lru_cache(maxsize=1)
def _sealed() -> bytes:
    """A good package, to bend."""
    text = envelope.seal(b'{"model":"m"}', _private().public_key(), random=os.urandom, processed_at=1)
    fields = json.loads(text)
    del fields["processed_at"]  # a request's package has none
    return json.dumps(fields).encode()


def packages_have_one_form(data: bytes) -> None:
    """A package that is taken is one JSON object with known fields, every one of its length; nothing else passes."""
    found = envelope.parse(data)
    if isinstance(found, Refusal):
        assert b"detail" in found.body("id")
        return
    fields = json.loads(data)
    assert set(fields) <= set(_FIELDS)
    payload = fields["encrypted_payload"]
    assert (len(found.nonce), len(found.wrapped_key)) == (12, 512)
    assert base64.b64decode(payload["ciphertext"]) + base64.b64decode(payload["tag"]) == found.sealed
    assert strict_base64.encode(found.nonce) == payload["nonce"]


def bent_packages_do_not_open(data: bytes) -> None:
    """A good package with these bytes written over it somewhere: it opens to what was sealed, or not at all."""
    package = _sealed()
    place = chance(data).randrange(len(package))
    bent = package[:place] + data + package[place + len(data) :]
    found = envelope.open_package(bent, [_private()], random=os.urandom)
    if isinstance(found, Refusal):
        assert bent != package
        return
    with found:
        assert bytes(found.plaintext) == b'{"model":"m"}'
        ours, theirs = json.loads(package), json.loads(bent)
        assert {name: theirs.get(name, ours[name]) for name in ours} == ours


def base64_has_one_spelling(data: bytes) -> None:
    text = data.decode("latin-1")
    try:
        found = strict_base64.decode(text)
    except ValueError:
        assert not re.fullmatch(r"(?:[A-Za-z0-9+/]{4})*", text) or not text
    else:
        assert strict_base64.encode(found) == text
    assert strict_base64.decode(strict_base64.encode(data)) == data or not data


def client_keys_are_keys(data: bytes) -> None:
    """A client's key that is taken is RSA within bounds, in the one spelling that we would write it in."""
    found = parse_client_key(data.decode("latin-1"))
    if isinstance(found, Refusal):
        return
    assert MIN_BITS <= found.key_size <= MAX_BITS
    pem = found.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    again = parse_client_key(quote(pem))
    assert not isinstance(again, Refusal) and again.public_numbers() == found.public_numbers()


def envelope_headers_are_short_words(data: bytes) -> None:
    """A payload id can stand in a header, a log line and a store's key; a version is spoken or refused."""
    text = data.decode("utf-8", "replace")
    found = parse_payload_id(text)
    if not isinstance(found, Refusal):
        assert found == text and re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", found, re.ASCII)
    stream = parse_stream(text)
    assert isinstance(stream, Refusal) or (text == "1" and stream is True)


def encrypted_streams_hold_every_piece(data: bytes) -> None:
    """Whatever the upstream said, each record is one event of padded bytes, and no two of a stream are alike."""
    sealer = StreamSealer(_private().public_key(), bytes(32), "id", random=os.urandom, processed_at=1)
    events = [sealer.start(), sealer.event(data), sealer.event(data), sealer.finish(b"{}")]
    assert all(event.endswith(b"\n\n") or not event for event in events)
    first, second = events[1], events[2]
    assert not data or first != second
    for record in filter(None, first.split(b"\n\n")):
        raw = base64.b64decode(record.removeprefix(b"data: "), validate=True)
        assert (len(raw) - 16) % PAD_BYTES == 0
    records = RecordSealer(bytearray(32), bytes(32), b"header", "id")
    piece = data[:65536]
    assert len(records.seal(RECORD, piece)) - 16 == len(piece) + 1 + -(len(piece) + 1) % PAD_BYTES
    records.close()


TARGETS = (
    packages_have_one_form,
    bent_packages_do_not_open,
    base64_has_one_spelling,
    client_keys_are_keys,
    envelope_headers_are_short_words,
    encrypted_streams_hold_every_piece,
)
