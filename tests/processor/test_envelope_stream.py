"""The encrypted stream: both example clients read it, and read nothing else."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import subprocess
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.envelope_stream import END, MAX_PIECE_BYTES, RECORD, RecordSealer, StreamSealer

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "how-to" / "encrypted-clients"
VECTORS = Path(__file__).with_name("vectors") / "envelope_stream_v1.json"
NODE = shutil.which("node")
KEY = b"q" * 32
EVENTS = [b'data: {"n":%d}\n\n' % n for n in range(3)] + [b"data: [DONE]\n\n"]


def example_client() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stream_client", EXAMPLES / "stream_client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


client = example_client()


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def stream(
    key: rsa.RSAPrivateKey, events: list[bytes] = EVENTS, *, request_key: bytes = KEY, name: str = "p-1"
) -> list[bytes]:
    """The events of an encrypted stream, each with its empty line."""
    sealer = StreamSealer(key.public_key(), request_key, name, random=os.urandom, processed_at=7)
    return [sealer.start(), *map(sealer.event, events), sealer.finish(b'{"_metadata":{}}')]


def read(key: rsa.RSAPrivateKey, sent: list[bytes], *, request_key: bytes = KEY, name: str = "p-1") -> list[bytes]:
    opener = client.StreamOpener(key, request_key, name)
    pieces: list[bytes] = opener.feed(b"".join(sent))
    opener.close()
    assert opener.metadata == b'{"_metadata":{}}'
    return pieces


def refused(key: rsa.RSAPrivateKey, sent: list[bytes], **names: Any) -> bool:
    try:
        read(key, sent, **names)
    except client.StreamError:
        return True
    return False


def test_a_stream_is_read(key: rsa.RSAPrivateKey) -> None:
    assert read(key, stream(key)) == EVENTS


def test_the_first_event_names_what_is_used(key: rsa.RSAPrivateKey) -> None:
    name, data, *rest = stream(key)[0].split(b"\n")
    assert (name, rest) == (b"event: envelope", [b"", b""])
    header = json.loads(data.removeprefix(b"data: "))
    assert len(base64.b64decode(header.pop("encrypted_secret"))) == 256
    assert header == {
        "version": "1.0",
        "algorithm": "hybrid-aes256-rsa4096",
        "stream": "1",
        "key_algorithm": "RSA-OAEP-SHA256",
        "key_derivation": "HKDF-SHA256",
        "payload_algorithm": "AES-256-GCM",
        "processed_at": 7,
    }


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 5000), max_size=12))
def test_it_does_not_matter_how_the_bytes_arrive(key: rsa.RSAPrivateKey, cuts: list[int]) -> None:
    whole = b"".join(stream(key))
    opener = client.StreamOpener(key, KEY, "p-1")
    edges = [0, *sorted(cuts), len(whole)]
    pieces = [piece for start, end in pairwise(edges) for piece in opener.feed(whole[start:end])]
    opener.close()
    assert pieces == EVENTS


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.binary(max_size=600) | st.integers(1, 3).map(lambda n: b"x" * (MAX_PIECE_BYTES * n - 1 + n % 2)), max_size=4
    )
)
def test_all_pieces_together_are_the_plain_stream(key: rsa.RSAPrivateKey, events: list[bytes]) -> None:
    assert b"".join(read(key, stream(key, events))) == b"".join(events)


def test_every_reordering_omission_and_repetition_is_refused(key: rsa.RSAPrivateKey) -> None:
    sent = stream(key)
    for first in range(len(sent)):
        assert refused(key, sent[:first] + sent[first + 1 :]), f"without {first}"
        assert refused(key, [*sent[: first + 1], *sent[first:]]), f"{first} twice"
        for second in range(first + 1, len(sent)):
            swapped = list(sent)
            swapped[first], swapped[second] = sent[second], sent[first]
            assert refused(key, swapped), f"{first} and {second} swapped"


def test_every_truncation_is_refused(key: rsa.RSAPrivateKey) -> None:
    whole = b"".join(stream(key, EVENTS[:1]))
    for length in range(len(whole) - 1):  # the empty line after the last event may be missing
        assert refused(key, [whole[:length]]), length


def test_nothing_may_follow_the_end(key: rsa.RSAPrivateKey) -> None:
    sent = stream(key)
    for more in (sent[1], sent[-1], sent[0], b"data: [DONE]\n\n"):
        assert refused(key, [*sent, more])


def test_a_record_of_another_stream_is_refused(key: rsa.RSAPrivateKey) -> None:
    one, two = stream(key), stream(key)  # same client, same request, same payload id
    for at in range(len(one)):
        assert refused(key, [*one[:at], two[at], *one[at + 1 :]]), at


def test_a_record_is_not_an_end_and_an_end_is_not_a_record(key: rsa.RSAPrivateKey) -> None:
    sent = stream(key)
    assert refused(key, [*sent[:2], b"event: end\n" + sent[2]])  # cut short, dressed up as whole
    assert refused(key, [*sent[:-1], sent[-1].removeprefix(b"event: end\n")])


def test_another_payload_id_client_or_request_is_refused(key: rsa.RSAPrivateKey) -> None:
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    sent = stream(key)
    assert refused(key, sent, name="p-2")
    assert refused(stranger, sent)
    # Anybody can seal to the client's public key. Without the request's AES key it is of no use.
    assert refused(key, stream(key, request_key=b"f" * 32))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_changed_bit_is_refused(key: rsa.RSAPrivateKey, data: st.DataObject) -> None:
    whole = bytearray(b"".join(stream(key)).rstrip(b"\n") + b"\n")
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    assert refused(key, [bytes(whole)])


def test_any_change_of_the_header_is_refused(key: rsa.RSAPrivateKey) -> None:
    sent = stream(key)
    for old, new in (
        (b'"processed_at":7', b'"processed_at":8'),
        (b'"processed_at":7', b'"processed_at": 7'),
        (b"AES-256-GCM", b"AES-128-GCM"),
        (b'"stream":"1"', b'"stream":"2"'),
        (b'"version":"1.0"', b'"version":"0.9"'),
        (b"hybrid-aes256-rsa4096", b"hybrid-aes128-rsa2048"),
    ):
        assert old in sent[0]
        assert refused(key, [sent[0].replace(old, new), *sent[1:]])


def test_the_length_of_a_token_does_not_show(key: rsa.RSAPrivateKey) -> None:
    token = b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n'
    assert len({len(event) for event in stream(key, [token % (b"x" * length) for length in range(1, 200)])[1:-1]}) == 1


def test_a_plain_answer_is_no_encrypted_stream(key: rsa.RSAPrivateKey) -> None:
    for sent in ([], EVENTS, [b'{"version":"1.0"}'], [b"\n"], [b": comment\n\n"], [b"x" * 1_000_000]):
        assert refused(key, sent)


def test_misuse_of_the_sealer_is_a_fault(key: rsa.RSAPrivateKey) -> None:
    sealer = StreamSealer(key.public_key(), KEY, "p-1", random=os.urandom, processed_at=7)
    with pytest.raises(RuntimeError):
        sealer.event(b"x")
    sealer.start()
    with pytest.raises(RuntimeError):
        sealer.start()
    with pytest.raises(ValueError, match="metadata"):
        sealer.finish(bytes(MAX_PIECE_BYTES + 1))
    sealer.finish()
    sealer.close()
    with pytest.raises(RuntimeError):
        sealer.event(b"x")
    with pytest.raises(RuntimeError):
        sealer.finish()


def test_the_request_key_may_be_wiped_once_the_sealer_is_made(key: rsa.RSAPrivateKey) -> None:
    request_key = bytearray(KEY)
    sealer = StreamSealer(key.public_key(), request_key, "p-1", random=os.urandom, processed_at=7)
    request_key[:] = bytes(32)
    assert read(key, [sealer.start(), *map(sealer.event, EVENTS), sealer.finish(b'{"_metadata":{}}')]) == EVENTS


@pytest.fixture(scope="module")
def vector() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(VECTORS.read_text(encoding="utf-8"))
    return loaded


def test_the_records_of_the_vector_are_made(vector: dict[str, Any]) -> None:
    records = RecordSealer(
        bytearray.fromhex(vector["secret"]),
        bytes.fromhex(vector["request_key"]),
        vector["header"].encode(),
        vector["payload_id"],
    )
    for piece in vector["pieces"]:
        assert records.seal(RECORD, piece["text"].encode()).hex() == piece["sealed"]
    assert records.seal(END, vector["end"]["text"].encode()).hex() == vector["end"]["sealed"]


def test_the_protocol_page_shows_the_vector(vector: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "reference" / "envelope-protocol.md").read_text(encoding="utf-8")
    for name in ("payload_id", "secret", "request_key", "key", "nonce_prefix"):
        assert vector[name] in page, name
    assert sha256(vector["header"].encode()).hexdigest() in page
    assert vector["pieces"][0]["sealed"][:64] in page
    assert vector["end"]["sealed"][-32:] in page


def test_the_python_example_reads_the_vector(vector: dict[str, Any]) -> None:
    private = load_pem_private_key(vector["client_private_key"].encode(), None)
    opener = client.StreamOpener(private, bytes.fromhex(vector["request_key"]), vector["payload_id"])
    assert opener.feed(vector["stream"].encode()) == [piece["text"].encode() for piece in vector["pieces"]]
    opener.close()
    assert opener.metadata == vector["end"]["text"].encode()


@pytest.mark.skipif(NODE is None, reason="node is not on this machine: the JavaScript example is NOT checked")
def test_the_javascript_example_reads_the_vector_and_refuses_its_mutations() -> None:
    assert NODE is not None
    check = Path(__file__).with_name("stream_vectors.mjs")
    done = subprocess.run(
        [NODE, str(check), str(EXAMPLES / "stream_client.mjs"), str(VECTORS)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"read": True, "chunkings": 40, "refused": 15}
