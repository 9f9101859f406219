"""A chat over Paddock's encrypted stream (version 1), token by token. Needs `cryptography` and `httpx`.

    python stream_client.py https://gateway.example nz_… llama3.1:8b "Why is the sky blue?" [fingerprint]

`seal_request` and `StreamOpener` do no I/O: take them into a program of your own. The protocol and its test vectors
are in docs/reference/envelope-protocol.md. With a fingerprint (`paddock server-key` shows it) the server's key is
pinned; without one it is believed as far as TLS is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import urllib.parse
import uuid

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

OAEP = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)
LABEL = b"paddock envelope stream 1\x00"
MAX_LINE = 131_072  # a record is at most 64 KiB of text, padded, enciphered and in base64


class StreamError(Exception):
    """The stream is not what the server made for this request: throw away what came of it."""


def seal_request(body: dict[str, object], server_pem: bytes, fingerprint: str = "") -> tuple[bytes, bytes]:
    """The package to send, and its AES key, which `StreamOpener` needs."""
    server_key = load_pem_public_key(server_pem)
    if not isinstance(server_key, rsa.RSAPublicKey):
        raise StreamError("the server's key is not an RSA key")
    der = server_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if fingerprint and hashlib.sha256(der).hexdigest() != fingerprint:
        raise StreamError("the server's key is not the pinned one")
    key, nonce = os.urandom(32), os.urandom(12)
    sealed = AESGCM(key).encrypt(nonce, json.dumps(body).encode(), None)
    package = {
        "version": "1.0",
        "algorithm": "hybrid-aes256-rsa4096",
        "encrypted_payload": {
            "ciphertext": base64.b64encode(sealed[:-16]).decode(),
            "nonce": base64.b64encode(nonce).decode(),
            "tag": base64.b64encode(sealed[-16:]).decode(),
        },
        "encrypted_aes_key": base64.b64encode(server_key.encrypt(key, OAEP)).decode(),
    }
    return json.dumps(package).encode(), key


class StreamOpener:
    """Bytes of the answer in, pieces of the plain event stream out. Only after `finished` is the answer complete."""

    def __init__(self, private_key: rsa.RSAPrivateKey, request_key: bytes, payload_id: str) -> None:
        self._private_key, self._request_key, self._id = private_key, request_key, payload_id.encode()
        self._buffer, self._event, self._counter = b"", b"", 0
        self._cipher: AESGCM | None = None
        self._prefix = b""
        self.finished = False
        self.metadata = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces that are complete with these bytes; StreamError as soon as anything is wrong."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if max(map(len, (self._buffer, *lines))) > MAX_LINE:
            raise StreamError("a line is too long")
        pieces = []
        for line in lines:
            if line.startswith(b"event: "):
                self._event = line[7:]
            elif line.startswith(b"data: "):
                piece = self._data(self._event, line[6:])
                self._event = b""
                if piece:
                    pieces.append(piece)
            elif line and not line.startswith(b":"):
                raise StreamError("not an encrypted stream")
        return pieces

    def close(self) -> None:
        """To be called where the answer ends: an answer that was cut is an error, however good it looks."""
        if not self.finished:
            raise StreamError("the stream was cut")

    def _data(self, event: bytes, data: bytes) -> bytes:
        if self.finished or (self._cipher is None) != (event == b"envelope"):
            raise StreamError("an event out of place")
        if self._cipher is None:
            self._begin(data)
            return b""
        if event not in (b"", b"end"):
            raise StreamError("an unknown event")
        piece = self._open(self._cipher, b"\x01" if event == b"end" else b"\x00", data)
        if event == b"":
            return piece
        self.finished, self.metadata = True, piece
        return b""

    def _begin(self, header: bytes) -> None:
        try:
            fields = json.loads(header)
            if (fields["version"], fields["algorithm"], fields["stream"]) != ("1.0", "hybrid-aes256-rsa4096", "1"):
                raise StreamError("an unknown version or algorithm")
            secret = self._private_key.decrypt(base64.b64decode(fields["encrypted_secret"], validate=True), OAEP)
        except (ValueError, TypeError, KeyError) as error:
            raise StreamError("the header does not open") from error
        if len(secret) != 32:
            raise StreamError("the header does not open")
        info = LABEL + hashlib.sha256(header).digest() + self._id
        derived = HKDF(SHA256(), 36, salt=None, info=info).derive(secret + self._request_key)
        self._cipher, self._prefix = AESGCM(derived[:32]), derived[32:]

    def _open(self, cipher: AESGCM, kind: bytes, record: bytes) -> bytes:
        counter = self._counter.to_bytes(8, "big")
        self._counter += 1
        try:
            sealed = base64.b64decode(record, validate=True)
            if base64.b64encode(sealed) != record:
                raise ValueError("not canonical base64")
            padded = cipher.decrypt(self._prefix + counter, sealed, LABEL + kind + counter + self._id)
        except (ValueError, InvalidTag) as error:
            raise StreamError("a record does not open") from error
        piece = padded.rstrip(b"\x00")
        if not piece.endswith(b"\x80"):
            raise StreamError("a record is not padded")
        return piece[:-1]


def main(base_url: str, api_key: str, model: str, prompt: str, fingerprint: str = "") -> None:
    import httpx  # here, so that the functions above can be used without it

    private_key = rsa.generate_private_key(public_exponent=65537, key_size=4096)
    public_pem = private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    payload_id = str(uuid.uuid4())
    body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": True}
    with httpx.Client(base_url=base_url, timeout=300) as http:
        server_pem = http.get("/pki/public_key").raise_for_status().content
        package, request_key = seal_request(body, server_pem, fingerprint)
        headers = {
            "Authorization": f"Bearer {api_key}",
            "Content-Type": "application/octet-stream",
            "X-Payload-ID": payload_id,
            "X-Public-Key": urllib.parse.quote(public_pem.decode()),
            "X-Envelope-Stream": "1",
        }
        with http.stream("POST", "/v1/chat/secure_completion", headers=headers, content=package) as answer:
            if answer.status_code != 200:
                raise SystemExit(f"{answer.status_code}: {json.loads(answer.read()).get('detail')}")
            opener = StreamOpener(private_key, request_key, payload_id)
            plain = b""
            for data in answer.iter_raw():
                plain += b"".join(opener.feed(data))
                *lines, plain = plain.split(b"\n")
                for line in lines:
                    if line.startswith(b"data: {"):
                        for choice in json.loads(line[6:]).get("choices", []):
                            sys.stdout.write(choice["delta"].get("content") or "")
                    sys.stdout.flush()
            opener.close()
    sys.stdout.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
