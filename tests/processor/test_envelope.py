"""The package: what opens, what is refused, and that a refusal tells nothing and costs the same."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from processor.envelope import MAX_PACKAGE_BYTES, MAX_PLAINTEXT_BYTES, Opened, Package, open_package, parse, seal
from processor.envelope_refusal import Cause, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = b'{"model":"llama3.1:8b","messages":[]}'
OAEP = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)
Fields = dict[str, Any]


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=4096)


@pytest.fixture(scope="module")
def other() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=4096)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def fields(
    public: rsa.RSAPublicKey, plain: bytes = PLAIN, *, oaep: padding.OAEP = OAEP, secret: bytes = b"k" * 32
) -> Fields:
    """A package as the note describes it, made without any of our code."""
    nonce = os.urandom(12)
    sealed = AESGCM(secret).encrypt(nonce, plain, None)
    return {
        "version": "1.0",
        "algorithm": "hybrid-aes256-rsa4096",
        "encrypted_payload": {"ciphertext": b64(sealed[:-16]), "nonce": b64(nonce), "tag": b64(sealed[-16:])},
        "encrypted_aes_key": b64(public.encrypt(secret, oaep)),
        "key_algorithm": "RSA-OAEP-SHA256",
        "payload_algorithm": "AES-256-GCM",
    }


def package(*args: Any, **kwargs: Any) -> bytes:
    return json.dumps(fields(*args, **kwargs)).encode()


class Counting:
    """A private key that counts its operations."""

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self.key, self.count = key, 0

    def decrypt(self, ciphertext: bytes, padding: padding.AsymmetricPadding) -> bytes:
        self.count += 1
        return self.key.decrypt(ciphertext, padding)


def test_a_package_opens(key: rsa.RSAPrivateKey) -> None:
    opened = open_package(package(key.public_key()), [key], random=os.urandom)
    assert isinstance(opened, Opened)
    assert (bytes(opened.plaintext), bytes(opened.request_key), opened.generation) == (PLAIN, b"k" * 32, 0)


def test_names_of_algorithms_may_be_absent(key: rsa.RSAPrivateKey) -> None:
    bare = fields(key.public_key())
    del bare["key_algorithm"], bare["payload_algorithm"]
    assert isinstance(open_package(json.dumps(bare).encode(), [key], random=os.urandom), Opened)


@pytest.mark.parametrize("separators", [(",", ":"), (" , ", " :\n\t")])
def test_white_space_and_escapes_of_json_do_not_matter(key: rsa.RSAPrivateKey, separators: tuple[str, str]) -> None:
    text = json.dumps(fields(key.public_key()), separators=separators).replace("/", "\\/").replace("+", "\\u002B")
    assert isinstance(open_package(text.encode(), [key], random=os.urandom), Opened)


def test_leaving_the_block_overwrites_both_secrets(key: rsa.RSAPrivateKey) -> None:
    opened = open_package(package(key.public_key()), [key], random=os.urandom)
    assert isinstance(opened, Opened)
    with opened:
        plaintext, secret = opened.plaintext, opened.request_key
        assert plaintext == PLAIN
    assert not any(plaintext)
    assert not any(secret)


def test_nothing_opened_is_ever_printed(key: rsa.RSAPrivateKey) -> None:
    assert repr(open_package(package(key.public_key()), [key], random=os.urandom)) == "Opened(generation=0)"


def test_the_previous_key_opens_while_it_is_in_force(key: rsa.RSAPrivateKey, other: rsa.RSAPrivateKey) -> None:
    old = package(other.public_key())
    opened = open_package(old, [key, other], random=os.urandom)
    assert isinstance(opened, Opened)
    assert opened.generation == 1
    assert open_package(old, [key], random=os.urandom) == Refusal(Cause.UNDECIPHERABLE)


def test_the_largest_plaintext_opens_and_one_byte_more_does_not(key: rsa.RSAPrivateKey) -> None:
    opened = open_package(package(key.public_key(), bytes(MAX_PLAINTEXT_BYTES)), [key], random=os.urandom)
    assert isinstance(opened, Opened)
    assert len(opened.plaintext) == MAX_PLAINTEXT_BYTES
    assert parse(package(key.public_key(), bytes(MAX_PLAINTEXT_BYTES + 1))) == Refusal(Cause.ENCODING)
    assert parse(package(key.public_key(), bytes(MAX_PLAINTEXT_BYTES + 3))) == Refusal(Cause.TOO_LARGE)
    assert parse(b" " * (MAX_PACKAGE_BYTES + 1)) == Refusal(Cause.TOO_LARGE)


# Each edit makes one mistake in a good package.
CORPUS: dict[str, tuple[Cause, Callable[[Fields], object]]] = {
    "version newer": (Cause.VERSION, lambda f: f.update(version="1.1")),
    "version older": (Cause.VERSION, lambda f: f.update(version="0.9")),
    "version spelled otherwise": (Cause.VERSION, lambda f: f.update(version="1.0 ")),
    "version a list": (Cause.FIELDS, lambda f: f.update(version=["1.0"])),
    "version a number": (Cause.FIELDS, lambda f: f.update(version=1.0)),
    "version null": (Cause.VERSION, lambda f: f.update(version=None)),
    "version absent": (Cause.FIELDS, lambda f: f.pop("version")),
    "algorithm weaker": (Cause.ALGORITHM, lambda f: f.update(algorithm="hybrid-aes128-rsa2048")),
    "algorithm none": (Cause.ALGORITHM, lambda f: f.update(algorithm="none")),
    "algorithm in capitals": (Cause.ALGORITHM, lambda f: f.update(algorithm="HYBRID-AES256-RSA4096")),
    "algorithm absent": (Cause.FIELDS, lambda f: f.pop("algorithm")),
    "key algorithm of 1998": (Cause.ALGORITHM, lambda f: f.update(key_algorithm="RSA-PKCS1-v1_5")),
    "key algorithm empty": (Cause.ALGORITHM, lambda f: f.update(key_algorithm="")),
    "key algorithm null": (Cause.ALGORITHM, lambda f: f.update(key_algorithm=None)),
    "payload algorithm unauthenticated": (Cause.ALGORITHM, lambda f: f.update(payload_algorithm="AES-256-CBC")),
    "payload absent": (Cause.FIELDS, lambda f: f.pop("encrypted_payload")),
    "payload a string": (Cause.FIELDS, lambda f: f.update(encrypted_payload="x")),
    "payload a list": (Cause.FIELDS, lambda f: f.update(encrypted_payload=[])),
    "wrapped key absent": (Cause.FIELDS, lambda f: f.pop("encrypted_aes_key")),
    "wrapped key null": (Cause.FIELDS, lambda f: f.update(encrypted_aes_key=None)),
    "wrapped key a boolean": (Cause.FIELDS, lambda f: f.update(encrypted_aes_key=True)),
    "wrapped key empty": (Cause.ENCODING, lambda f: f.update(encrypted_aes_key="")),
    "wrapped key short": (Cause.ENCODING, lambda f: f.update(encrypted_aes_key=b64(bytes(511)))),
    "wrapped key long": (Cause.ENCODING, lambda f: f.update(encrypted_aes_key=b64(bytes(513)))),
    "wrapped key of a smaller server": (Cause.ENCODING, lambda f: f.update(encrypted_aes_key=b64(bytes(256)))),
    "wrapped key zero": (Cause.UNDECIPHERABLE, lambda f: f.update(encrypted_aes_key=b64(bytes(512)))),
    "wrapped key one": (Cause.UNDECIPHERABLE, lambda f: f.update(encrypted_aes_key=b64(bytes(511) + b"\1"))),
    "wrapped key beyond the modulus": (Cause.UNDECIPHERABLE, lambda f: f.update(encrypted_aes_key=b64(b"\xff" * 512))),
    "unknown field": (Cause.FIELDS, lambda f: f.update(compression="gzip")),
    "field of an answer": (Cause.FIELDS, lambda f: f.update(processed_at=1)),
    "unknown field in payload": (Cause.FIELDS, lambda f: f["encrypted_payload"].update(aad="")),
    "ciphertext absent": (Cause.FIELDS, lambda f: f["encrypted_payload"].pop("ciphertext")),
    "ciphertext empty": (Cause.ENCODING, lambda f: f["encrypted_payload"].update(ciphertext="")),
    "ciphertext an object": (Cause.FIELDS, lambda f: f["encrypted_payload"].update(ciphertext={})),
    "ciphertext of another alphabet": (Cause.ENCODING, lambda f: f["encrypted_payload"].update(ciphertext="-_-_")),
    "ciphertext with a line end": (Cause.ENCODING, lambda f: f["encrypted_payload"].update(ciphertext="QUJD\n")),
    "ciphertext unpadded": (Cause.ENCODING, lambda f: f["encrypted_payload"].update(ciphertext="QUI")),
    "ciphertext with stray bits": (Cause.ENCODING, lambda f: f["encrypted_payload"].update(ciphertext="QUJ=")),
    "ciphertext of two texts": (Cause.ENCODING, lambda f: f["encrypted_payload"].update(ciphertext="QQ==QQ==")),
    "ciphertext not ASCII": (Cause.ENCODING, lambda f: f["encrypted_payload"].update(ciphertext="ÄÖÜß")),
    "nonce of 96 bits and more": (Cause.ENCODING, lambda f: f["encrypted_payload"].update(nonce=b64(bytes(13)))),
    "nonce of 64 bits": (Cause.ENCODING, lambda f: f["encrypted_payload"].update(nonce=b64(bytes(8)))),
    "nonce empty": (Cause.ENCODING, lambda f: f["encrypted_payload"].update(nonce="")),
    "tag of 96 bits": (Cause.ENCODING, lambda f: f["encrypted_payload"].update(tag=b64(bytes(12)))),
    "tag of 32 bits": (Cause.ENCODING, lambda f: f["encrypted_payload"].update(tag=b64(bytes(4)))),
    "tag empty": (Cause.ENCODING, lambda f: f["encrypted_payload"].update(tag="")),
    "tag zero": (Cause.UNDECIPHERABLE, lambda f: f["encrypted_payload"].update(tag=b64(bytes(16)))),
    "tag left to the ciphertext": (Cause.FIELDS, lambda f: f["encrypted_payload"].pop("tag")),
}


@pytest.mark.parametrize("mistake", CORPUS)
def test_one_mistake_is_refused(key: rsa.RSAPrivateKey, mistake: str) -> None:
    cause, edit = CORPUS[mistake]
    edited = fields(key.public_key())
    edit(edited)
    assert open_package(json.dumps(edited).encode(), [key], random=os.urandom) == Refusal(cause)


def test_text_that_is_not_one_strict_object_is_refused(key: rsa.RSAPrivateKey) -> None:
    good = package(key.public_key())
    version = b'{"version": "1.0", '
    for bad, cause in {
        b"": Cause.FIELDS,
        b"null": Cause.FIELDS,
        b"[" * 100_000: Cause.FIELDS,
        b'{"a":' * 100_000: Cause.FIELDS,
        b"{}" * 2: Cause.NOT_JSON,
        b"9" * 1_000_000: Cause.FIELDS,
        b"\xef\xbb\xbf" + good: Cause.NOT_JSON,
        good.decode().encode("utf-16"): Cause.NOT_JSON,
        good.decode().encode("utf-32-le"): Cause.NOT_JSON,
        good + b"{": Cause.FIELDS,
        good + b" x": Cause.NOT_JSON,
        good[1:]: Cause.FIELDS,
        good.replace(b'"', b"'"): Cause.NOT_JSON,
        good.replace(b'"1.0"', b'"1.0\x00"'): Cause.NOT_JSON,
        version + good[1:]: Cause.FIELDS,  # repeated, though equal
        good.replace(b'"nonce": ', b'"nonce": "AAAA", "nonce": '): Cause.FIELDS,
        good.replace(b'"1.0"', b"NaN"): Cause.FIELDS,
    }.items():
        assert parse(bad) == Refusal(cause), bad[:60]


def test_other_paddings_and_keys_of_other_sizes_are_refused(key: rsa.RSAPrivateKey) -> None:
    public = key.public_key()
    another = padding.OAEP(mgf=padding.MGF1(SHA384()), algorithm=SHA384(), label=None)
    labelled = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=b"label")
    mixed = padding.OAEP(mgf=padding.MGF1(SHA384()), algorithm=SHA256(), label=None)
    old = fields(public) | {"encrypted_aes_key": b64(public.encrypt(b"k" * 32, padding.PKCS1v15()))}
    for bad in (
        *(package(public, oaep=oaep) for oaep in (another, labelled, mixed)),
        *(package(public, secret=b"k" * size) for size in (16, 24)),  # AES-128 and AES-192
        json.dumps(old).encode(),
    ):
        assert open_package(bad, [key], random=os.urandom) == Refusal(Cause.UNDECIPHERABLE)


@pytest.mark.parametrize("field", ["ciphertext", "nonce", "tag"])
def test_any_changed_bit_of_the_payload_is_refused(key: rsa.RSAPrivateKey, field: str) -> None:
    good = fields(key.public_key(), PLAIN[:8])
    whole = base64.b64decode(good["encrypted_payload"][field])
    for bit in range(len(whole) * 8):
        changed = good | {"encrypted_payload": good["encrypted_payload"] | {field: b64(flip(whole, bit))}}
        refused = open_package(json.dumps(changed).encode(), [key], random=os.urandom)
        assert refused == Refusal(Cause.UNDECIPHERABLE), bit


@pytest.mark.parametrize("eighth", range(8))
def test_any_changed_bit_of_the_wrapped_key_is_refused(key: rsa.RSAPrivateKey, eighth: int) -> None:
    good = fields(key.public_key(), PLAIN[:8])
    whole = base64.b64decode(good["encrypted_aes_key"])
    for bit in range(eighth * 512, eighth * 512 + 512):
        changed = good | {"encrypted_aes_key": b64(flip(whole, bit))}
        refused = open_package(json.dumps(changed).encode(), [key], random=os.urandom)
        assert refused == Refusal(Cause.UNDECIPHERABLE), bit


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_changed_bit_of_the_text_is_refused(key: rsa.RSAPrivateKey, data: st.DataObject) -> None:
    good = package(key.public_key())
    bit = data.draw(st.integers(0, len(good) * 8 - 1))
    assert isinstance(open_package(flip(good, bit), [key], random=os.urandom), Refusal)


def test_every_truncation_is_refused_without_a_private_key_at_work(key: rsa.RSAPrivateKey) -> None:
    good, counting = package(key.public_key()), Counting(key)
    for length in range(len(good)):
        assert isinstance(open_package(good[:length], [counting], random=os.urandom), Refusal), length
    assert counting.count == 0


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
@example(b'{"encrypted_payload":{}}')
def test_no_bytes_make_the_parser_fail(noise: bytes) -> None:
    assert isinstance(parse(noise), Refusal)


_VALUES: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just([]) | st.just({})
)
_TOP = st.sampled_from(["version", "algorithm", "encrypted_aes_key", "key_algorithm", "payload_algorithm", "more"])
_INNER = st.sampled_from(["ciphertext", "nonce", "tag", "more"])


@settings(max_examples=300, deadline=None)
@given(top=st.dictionaries(_TOP, _VALUES), inner=st.dictionaries(_INNER, _VALUES))
def test_no_json_makes_the_parser_fail(top: Fields, inner: Fields) -> None:
    value = {
        "version": "1.0",
        "algorithm": "hybrid-aes256-rsa4096",
        "encrypted_aes_key": b64(bytes(512)),
        "encrypted_payload": {"ciphertext": "QUJD", "nonce": b64(bytes(12)), "tag": b64(bytes(16))} | inner,
    }
    parsed = parse(json.dumps(value | top).encode())
    assert isinstance(parsed, Package if not top and not inner else Refusal | Package)


def test_every_refusal_by_a_key_costs_one_operation_of_every_key(
    key: rsa.RSAPrivateKey, other: rsa.RSAPrivateKey
) -> None:
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=4096)
    wrong_tag = fields(key.public_key())
    wrong_tag["encrypted_payload"]["tag"] = b64(bytes(16))
    for bad in (
        json.dumps(wrong_tag).encode(),  # the current key unwraps it, the tag is wrong
        package(stranger.public_key()),  # no padding is right
        package(key.public_key(), secret=b"k" * 16),  # unwraps to a key of another size
    ):
        keys = Counting(key), Counting(other)
        assert open_package(bad, keys, random=os.urandom) == Refusal(Cause.UNDECIPHERABLE)
        assert [counting.count for counting in keys] == [1, 1]


def test_the_current_key_costs_one_operation_whatever_grace_period_runs(
    key: rsa.RSAPrivateKey, other: rsa.RSAPrivateKey
) -> None:
    keys = Counting(key), Counting(other)
    assert isinstance(open_package(package(key.public_key()), keys, random=os.urandom), Opened)
    assert [counting.count for counting in keys] == [1, 0]


def test_a_package_under_the_substitute_key_is_refused_all_the_same(key: rsa.RSAPrivateKey) -> None:
    """Implicit rejection deciphers with a random key; even who could guess it gets nothing accepted."""
    forged = fields(key.public_key(), secret=b"r" * 32) | {"encrypted_aes_key": b64(b"\x01" * 512)}
    asked: list[int] = []

    def random(size: int) -> bytes:
        asked.append(size)
        return b"r" * size

    assert open_package(json.dumps(forged).encode(), [key], random=random) == Refusal(Cause.UNDECIPHERABLE)
    assert asked == [32]


def test_all_causes_have_one_body() -> None:
    bodies = {Refusal(cause).body("req-1") for cause in Cause}
    assert len(bodies) == 1
    body = json.loads(bodies.pop())
    assert body["error"] == {"message": body["detail"], "type": "bad_request", "code": 400}
    assert body["request_id"] == "req-1"
    assert not any(cause.value in body["detail"] for cause in Cause)


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_an_answer_is_sealed_as_the_note_says(bits: int) -> None:
    client = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    sealed = json.loads(seal(PLAIN, client.public_key(), random=os.urandom, processed_at=1_732_260_000))
    payload = {name: base64.b64decode(value, validate=True) for name, value in sealed.pop("encrypted_payload").items()}
    secret = client.decrypt(base64.b64decode(sealed.pop("encrypted_aes_key"), validate=True), OAEP)
    assert sealed == {
        "version": "1.0",
        "algorithm": "hybrid-aes256-rsa4096",
        "key_algorithm": "RSA-OAEP-SHA256",
        "payload_algorithm": "AES-256-GCM",
        "processed_at": 1_732_260_000,
    }
    assert {name: len(value) for name, value in payload.items()} == {"ciphertext": len(PLAIN), "nonce": 12, "tag": 16}
    assert AESGCM(secret).decrypt(payload["nonce"], payload["ciphertext"] + payload["tag"], None) == PLAIN


def test_no_two_answers_share_key_or_nonce() -> None:
    client = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    drawn: list[bytes] = []

    def random(size: int) -> bytes:
        drawn.append(os.urandom(size))
        return drawn[-1]

    for _ in range(2):
        seal(PLAIN, client.public_key(), random=random, processed_at=0)
    assert [len(value) for value in drawn] == [32, 12, 32, 12]


def test_a_parsed_package_is_bytes(key: rsa.RSAPrivateKey) -> None:
    parsed = parse(bytearray(package(key.public_key())))
    assert isinstance(parsed, Package)
    assert (len(parsed.sealed), len(parsed.nonce), len(parsed.wrapped_key)) == (len(PLAIN) + 16, 12, 512)
