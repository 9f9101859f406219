"""Makes `envelope_stream_v1.json` anew: `python tests/processor/vectors/make_envelope_stream_v1.py > …`.

Only the wrapping of the secret is random (RSA-OAEP), so a new run gives other bytes and an equally good vector. It is
written from the protocol page and shares no code with the gateway.
"""

from __future__ import annotations

import base64
import hashlib
import json

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

LABEL = b"paddock envelope stream 1\0"
PAYLOAD_ID = "3f0c8f8a-2f5c-4f0e-9d4e-0c8a5c3f6b11"
PIECES = [
    'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"Grüß"}}]}\n\n',
    'data: {"choices":[{"index":0,"delta":{"content":" Gott"}}]}\n\n',
    "data: " + "x" * 300 + "\n\n",
    "data: [DONE]\n\n",
]
METADATA = '{"_metadata":{"response_status":"success"}}'


def main() -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    oaep = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)
    secret, request_key = bytes(range(32)), bytes(range(32, 64))
    wrapped = base64.b64encode(private.public_key().encrypt(secret, oaep)).decode()
    header = json.dumps(
        {
            "version": "1.0",
            "algorithm": "hybrid-aes256-rsa4096",
            "stream": "1",
            "encrypted_secret": wrapped,
            "key_algorithm": "RSA-OAEP-SHA256",
            "key_derivation": "HKDF-SHA256",
            "payload_algorithm": "AES-256-GCM",
            "processed_at": 1732260000,
        },
        separators=(",", ":"),
    )
    info = LABEL + hashlib.sha256(header.encode()).digest() + PAYLOAD_ID.encode()
    derived = HKDF(SHA256(), 36, salt=None, info=info).derive(secret + request_key)
    key, prefix = derived[:32], derived[32:]

    def sealed(counter: int, kind: bytes, text: str) -> bytes:
        padded = text.encode() + b"\x80"
        padded += bytes(-len(padded) % 256)
        count = counter.to_bytes(8, "big")
        return AESGCM(key).encrypt(prefix + count, padded, LABEL + kind + count + PAYLOAD_ID.encode())

    records = [sealed(counter, b"\0", text) for counter, text in enumerate(PIECES)]
    end = sealed(len(PIECES), b"\1", METADATA)
    lines = [f"event: envelope\ndata: {header}\n\n"]
    lines += [f"data: {base64.b64encode(record).decode()}\n\n" for record in records]
    lines += [f"event: end\ndata: {base64.b64encode(end).decode()}\n\n"]
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    vector = {
        "about": "Test vector of the encrypted stream, version 1. The private key is published: never use it.",
        "client_private_key": pem,
        "payload_id": PAYLOAD_ID,
        "request_key": request_key.hex(),
        "secret": secret.hex(),
        "header": header,
        "info": info.hex(),
        "key": key.hex(),
        "nonce_prefix": prefix.hex(),
        "pieces": [{"text": text, "sealed": record.hex()} for text, record in zip(PIECES, records, strict=True)],
        "end": {"text": METADATA, "sealed": end.hex()},
        "stream": "".join(lines),
    }
    print(json.dumps(vector, indent=1, ensure_ascii=False))


main()
