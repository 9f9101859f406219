"""An envelope client for tests: it can also do what no honest client would."""

from __future__ import annotations

import base64
import json
import os
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from processor.envelope import OAEP
from tests.harness import MODELS, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.harness import Client, Gateway

PATH = "/v1/chat/secure_completion"
OPAQUE = "the encrypted request could not be accepted"


def public_pem(key: rsa.RSAPrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def server_key(gateway: Gateway) -> rsa.RSAPublicKey:
    """The gateway's key, as soon as it has one: on its first start that takes a second or more."""

    def fetch() -> bytes | None:
        response = gateway.http().get("/pki/public_key")
        assert response.status_code in (200, 503), response.text
        return response.content if response.status_code == 200 else None

    key = load_pem_public_key(eventually(fetch, patience=30))
    assert isinstance(key, rsa.RSAPublicKey)
    return key


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODELS[0], "messages": [{"role": "user", "content": text}], **fields}


@dataclass
class Sealed:
    """A package, as fields that a test may spoil, and the AES key inside."""

    fields: dict[str, Any]
    key: bytes

    @property
    def bytes_(self) -> bytes:
        return json.dumps(self.fields).encode()


def seal(plaintext: bytes | dict[str, Any], to: rsa.RSAPublicKey) -> Sealed:
    if isinstance(plaintext, dict):
        plaintext = json.dumps(plaintext).encode()
    key, nonce = os.urandom(32), os.urandom(12)
    sealed = AESGCM(key).encrypt(nonce, plaintext, None)
    payload = {"ciphertext": _text(sealed[:-16]), "nonce": _text(nonce), "tag": _text(sealed[-16:])}
    return Sealed(
        {
            "version": "1.0",
            "algorithm": "hybrid-aes256-rsa4096",
            "encrypted_payload": payload,
            "encrypted_aes_key": _text(to.encrypt(key, OAEP)),
            "key_algorithm": "RSA-OAEP-SHA256",
            "payload_algorithm": "AES-256-GCM",
        },
        key,
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass
class Sender:
    """A client with a key pair; `send` seals and posts, `open` opens an answer."""

    client: Client
    server: rsa.RSAPublicKey
    private: rsa.RSAPrivateKey = field(repr=False)

    def headers(self, payload_id: str | None = None, **more: str) -> dict[str, str]:
        return {
            "content-type": "application/octet-stream",
            "x-payload-id": payload_id or str(uuid.uuid4()),
            "x-public-key": quote(public_pem(self.private)),
            **{name.replace("_", "-"): value for name, value in more.items()},
        }

    def post(self, package: bytes, payload_id: str | None = None, **more: str) -> httpx.Response:
        return self.client.http.post(PATH, content=package, headers=self.headers(payload_id, **more))

    def send(self, plaintext: bytes | dict[str, Any], payload_id: str | None = None, **more: str) -> httpx.Response:
        return self.post(seal(plaintext, self.server).bytes_, payload_id, **more)

    def open(self, response: httpx.Response) -> dict[str, Any]:
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/octet-stream"
        package = response.json()
        payload = {name: base64.b64decode(text) for name, text in package["encrypted_payload"].items()}
        key = self.private.decrypt(base64.b64decode(package["encrypted_aes_key"]), OAEP)
        plain = AESGCM(key).decrypt(payload["nonce"], payload["ciphertext"] + payload["tag"], None)
        found: dict[str, Any] = json.loads(plain)
        return found


def senders(gateway: Gateway, *, bits: int = 2048) -> Callable[..., Sender]:
    """Makes senders with one key pair; see the fixture `sender`."""
    server, private = server_key(gateway), rsa.generate_private_key(public_exponent=65537, key_size=bits)

    def make(*options: str, client: Client | None = None) -> Sender:
        return Sender(client or gateway.client(gateway.tenant(*options)), server, private)

    return make


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """A plain error in the shape of this route; the 400 reads the same whatever was wrong."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"error", "request_id", "detail"}
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["error"]["code"] == status
    assert body["detail"] == body["error"]["message"]
    if status == 400:
        assert body["error"] == {"message": OPAQUE, "type": "bad_request", "code": 400}
    return body
