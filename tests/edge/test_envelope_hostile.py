"""What no honest client sends: each gets the same 400, and nothing of it reaches the upstream."""

from __future__ import annotations

import base64
import json
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness import request_id
from tests.sealing import OPAQUE, PATH, chat, public_pem, refused, seal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness import Gateway
    from tests.sealing import Sender


@pytest.fixture(scope="module")
def one(sender: Callable[..., Sender]) -> Sender:
    found = sender()
    assert found.send(chat("x")).status_code == 200
    return found


def flipped(text: str, bit: int) -> str:
    """The field with one bit of its bytes changed."""
    data = bytearray(base64.b64decode(text))
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    return base64.b64encode(data).decode()


def test_tampering(gateway: Gateway, one: Sender) -> None:
    """Some bits of each field; `tests/processor` turns each of them."""
    for name in ("ciphertext", "nonce", "tag", "encrypted_aes_key"):
        for bit in (0, 7, 41, 95, 4095):
            sealed = seal(chat("x"), one.server)
            place = sealed.fields if name == "encrypted_aes_key" else sealed.fields["encrypted_payload"]
            place[name] = flipped(place[name], bit)
            response = one.post(sealed.bytes_)
            refused(response)
            assert not gateway.upstream.served(request_id(response))


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Sender], bytes]:
    def make(one: Sender) -> bytes:
        sealed = seal(chat("x"), one.server)
        change(sealed.fields)
        return sealed.bytes_

    return make


CORPUS: dict[str, Callable[[Sender], bytes]] = {
    "empty": lambda _: b"",
    "not json": lambda _: b"\x00\xff" * 100,
    "plain": lambda _: json.dumps(chat("x")).encode(),
    "null": lambda _: b"null",
    "deep": lambda _: b"[" * 100_000,
    "wide": lambda _: b'{"a":1' + b',"a":1' * 100_000 + b"}",
    "truncated": lambda one: seal(chat("x"), one.server).bytes_[:-20],
    "continued": lambda one: seal(chat("x"), one.server).bytes_ + b"{}",
    "another key": lambda _: seal(chat("x"), rsa.generate_private_key(65537, 4096).public_key()).bytes_,
    "a smaller key": lambda _: seal(chat("x"), rsa.generate_private_key(65537, 2048).public_key()).bytes_,
    "another version": changed(lambda f: f.update(version="2.0")),
    "an older version": changed(lambda f: f.update(version="0.9")),
    "another algorithm": changed(lambda f: f.update(algorithm="hybrid-aes128-rsa2048")),
    "no algorithm": changed(lambda f: f.update(algorithm="none")),
    "another key algorithm": changed(lambda f: f.update(key_algorithm="RSA-OAEP-SHA1")),
    "another cipher": changed(lambda f: f.update(payload_algorithm="AES-256-CBC")),
    "an unknown field": changed(lambda f: f.update(kid="1")),
    "a missing field": changed(lambda f: f.pop("version")),
    "a number": changed(lambda f: f.update(version=1.0)),
    "a short nonce": changed(lambda f: f["encrypted_payload"].update(nonce="AAAA")),
    "a short tag": changed(lambda f: f["encrypted_payload"].update(tag="AAAA")),
    "no ciphertext": changed(lambda f: f["encrypted_payload"].update(ciphertext="")),
    "a line end in base64": changed(lambda f: f.update(encrypted_aes_key=f["encrypted_aes_key"] + "\n")),
    "stream inside": lambda one: seal(chat("x", stream=True), one.server).bytes_,
    "not json inside": lambda one: seal(b"x" * 100, one.server).bytes_,
    "nothing inside": lambda one: seal(b"{}", one.server).bytes_,
    "too large": lambda one: b" " * (16 * 1024 * 1024 + 1),
    "far too large": lambda one: b" " * (40 * 1024 * 1024),
    "too large inside": lambda one: seal(b" " * (10 * 1024 * 1024 + 1), one.server).bytes_,
}  # fmt: skip


@pytest.mark.parametrize("name", CORPUS)
def test_packages(gateway: Gateway, one: Sender, name: str) -> None:
    response = one.post(CORPUS[name](one))
    refused(response)
    assert not gateway.upstream.served(request_id(response))


def pem(key: Any) -> str:
    text: str = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return text


HEADERS: dict[str, dict[str, str]] = {
    "no key": {"x-public-key": ""},
    "a private key": {"x-public-key": quote("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")},
    "a small key": {"x-public-key": quote(public_pem(rsa.generate_private_key(65537, 1024)))},  # noqa: S505  # it is refused
    "another kind of key": {"x-public-key": quote(pem(ec.generate_private_key(ec.SECP256R1()).public_key()))},
    "a long key": {"x-public-key": "A" * 20_000},
    "no id": {"x-payload-id": ""},
    "an id with a slash": {"x-payload-id": "a/b"},
    "a long id": {"x-payload-id": "a" * 129},
    "a tier": {"x-security-tier": "ultra"},
    "two tiers": {"x-security-tier": "standard, high"},
    "no tier": {"x-security-tier": ""},
    "a stream of another version": {"x-envelope-stream": "2"},
    "a stream that was not asked for inside": {"x-envelope-stream": "1"},
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(gateway: Gateway, one: Sender, name: str) -> None:
    headers = {**one.headers(), **HEADERS[name]}
    response = one.client.http.post(PATH, content=seal(chat("x"), one.server).bytes_, headers=headers)
    refused(response)
    assert not gateway.upstream.served(request_id(response))


def test_without_the_headers(one: Sender) -> None:
    for missing in ("x-payload-id", "x-public-key"):
        headers = {name: value for name, value in one.headers().items() if name != missing}
        refused(one.client.http.post(PATH, content=seal(chat("x"), one.server).bytes_, headers=headers))


def test_a_header_of_a_million_characters(gateway: Gateway, one: Sender) -> None:
    """Envoy does not even read it whole: a 400 in its own words, as for any such header on any path."""
    parts = urlsplit(gateway.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {one.client.key}\r\n".encode())
        try:
            connection.sendall(b"x-public-key: " + b"A" * 1_000_000 + b"\r\n\r\n")
        except OSError:
            pass  # it was refused before it was all sent
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except OSError:
            pass  # likewise
    assert answer.startswith(b"HTTP/1.1 400"), answer[:200]
    assert one.send(chat("x")).status_code == 200


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_anything_at_all(one: Sender, data: st.DataObject) -> None:
    """A good package with a few bytes of it changed, or none of it."""
    package = bytearray(seal(chat("x"), one.server).bytes_)
    if data.draw(st.booleans()):
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(package) - 1))
            package[place] ^= data.draw(st.integers(1, 255))
    else:
        package = bytearray(data.draw(st.binary(max_size=2000)))
    response = one.post(bytes(package))
    if response.status_code != 200:  # a change in blank space between fields says the same thing
        assert refused(response)["detail"] == OPAQUE
    else:
        assert json.loads(package)
