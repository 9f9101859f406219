"""The encrypted stream, version 1: an answer that leaves event by event (`docs/reference/envelope-protocol.md`).

Beyond the published protocol. The answer is itself an event stream, so that everything on the way treats it as one:
a first event `envelope` with a header, one event a record, a last event `end`. What a record carries is a piece of
the plain stream, usually one event of it; all pieces together are the plain stream, byte for byte.

The key of the records comes from a fresh secret, wrapped for the client, *and* from the AES key of the request. So
only who opened the request can have made the stream: in the published format anybody on the way could seal an answer
to the client's public key. Header and payload id go into the key as well, counter and kind of each record into its
nonce and associated data: a record that is changed, moved, repeated, left out or taken from another stream does not
open, and a stream that was cut lacks its `end`. Records are padded, because the length of a token says much about it.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from processor import strict_base64
from processor.envelope import ALGORITHM, KEY_ALGORITHM, KEY_BYTES, PAYLOAD_ALGORITHM, VERSION, wrap
from processor.envelope_headers import STREAM_VERSION
from processor.memory import wipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

LABEL = b"paddock envelope stream 1\x00"  # ends with a byte that no payload id has
KEY_DERIVATION = "HKDF-SHA256"
PREFIX_BYTES = 4  # of the nonce; the other eight are the counter
PAD_BYTES = 256  # a record's padded length is a multiple of this
MAX_PIECE_BYTES = 65_536  # a longer event is carried by several records
RECORD, END = b"\x00", b"\x01"


class RecordSealer:
    """The records of one stream: their key, their nonces, their order."""

    def __init__(self, secret: bytearray, request_key: bytes | bytearray, header: bytes, payload_id: str) -> None:
        """`header` is the data of the first event, exactly as sent."""
        self._binding = payload_id.encode("ascii")
        self._counter = 0
        self._key = bytearray(KEY_BYTES + PREFIX_BYTES)
        material = bytearray(secret + request_key)
        info = LABEL + sha256(header).digest() + self._binding
        try:
            HKDF(SHA256(), len(self._key), salt=None, info=info).derive_into(material, self._key)
        finally:
            wipe(material)
        self._prefix = bytes(self._key[KEY_BYTES:])
        self._cipher = AESGCM(memoryview(self._key)[:KEY_BYTES])

    def seal(self, kind: bytes, piece: bytes) -> bytes:
        """The next record: ciphertext and tag of the padded piece (ISO/IEC 7816-4: 0x80, then zeros)."""
        counter = self._counter.to_bytes(8, "big")
        self._counter += 1
        padded = piece + b"\x80" + bytes(-(len(piece) + 1) % PAD_BYTES)
        return self._cipher.encrypt(self._prefix + counter, padded, LABEL + kind + counter + self._binding)

    def close(self) -> None:
        """No record after this: the key is overwritten."""
        wipe(self._key)


class StreamSealer:
    """One encrypted stream, sans-IO: `start` once, `event` for each piece of the plain stream, `finish` once.

    Made with the request's AES key, which may be wiped as soon as the constructor is done. Its one RSA operation is
    with the client's public key, well under a tenth of a millisecond; `event` takes microseconds: both may run on the
    event loop. Not for several threads at once.
    """

    def __init__(
        self,
        client_key: RSAPublicKey,
        request_key: bytes | bytearray,
        payload_id: str,
        *,
        random: Callable[[int], bytes],
        processed_at: int,
    ) -> None:
        secret = bytearray(random(KEY_BYTES))
        try:
            self._header = _header(wrap(secret, client_key), processed_at)
            self._records: RecordSealer | None = RecordSealer(secret, request_key, self._header, payload_id)
        finally:
            wipe(secret)
        self._started = False

    def start(self) -> bytes:
        """The first event."""
        if self._started:
            raise RuntimeError("an encrypted stream starts once")
        self._started = True
        return b"event: envelope\ndata: " + self._header + b"\n\n"

    def event(self, piece: bytes) -> bytes:
        """The record or records of a piece of the plain stream, an event with the empty line that ends it."""
        return b"".join(
            b"data: " + self._seal(RECORD, piece[start : start + MAX_PIECE_BYTES])
            for start in range(0, len(piece), MAX_PIECE_BYTES)
        )

    def finish(self, metadata: bytes = b"") -> bytes:
        """The last event, with the metadata object as its content. Only now does the client know it has everything."""
        if len(metadata) > MAX_PIECE_BYTES:
            raise ValueError("metadata does not fit into one record")
        last = b"event: end\ndata: " + self._seal(END, metadata)
        self.close()
        return last

    def close(self) -> None:
        """Forget the key, at the end or where the stream is given up. A second time does nothing."""
        if self._records is not None:
            self._records.close()
            self._records = None

    def _seal(self, kind: bytes, piece: bytes) -> bytes:
        if self._records is None or not self._started:
            raise RuntimeError("an encrypted stream has records between its start and its end")
        return strict_base64.encode(self._records.seal(kind, piece)).encode("ascii") + b"\n\n"


def _header(wrapped: bytes, processed_at: int) -> bytes:
    header = {
        "version": VERSION,
        "algorithm": ALGORITHM,
        "stream": STREAM_VERSION,
        "encrypted_secret": strict_base64.encode(wrapped),
        "key_algorithm": KEY_ALGORITHM,
        "key_derivation": KEY_DERIVATION,
        "payload_algorithm": PAYLOAD_ALGORITHM,
        "processed_at": processed_at,
    }
    return json.dumps(header, separators=(",", ":")).encode("ascii")
