"""A stand-in for the joined gateway, made of the pure core and `http.server`: enough for a published client to talk to.

What it answers is decided by the test's `answer` function, from the decrypted request; an API key `status-429` gets
that status with the gateway's error body.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from policy.rules.decision import error_body
from processor.client_key import parse_client_key
from processor.envelope import Opened, open_package, seal
from processor.envelope_headers import parse_payload_id, parse_stream
from processor.envelope_metadata import add_metadata, response_metadata
from processor.envelope_refusal import Refusal
from processor.envelope_stream import StreamSealer
from processor.memory import Protection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

NOW = 1_732_260_000
PROTECTION = Protection("linux", memory_locking=False, secure_zeroing=True, core_dump_prevention=True)
Answer = dict[str, object] | list[bytes]  # a whole answer, or the events of a plain stream


@contextmanager
def gateway(server_key: RSAPrivateKey, answer: Callable[[dict[str, object]], Answer]) -> Iterator[str]:
    """Its base URL, while it runs."""
    public = server_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, "text/plain", public)

        def do_POST(self) -> None:
            package = self.rfile.read(int(self.headers["Content-Length"]))
            key = self.headers["Authorization"].removeprefix("Bearer ")
            if key.startswith("status-"):
                status = int(key.removeprefix("status-"))
                return self._send(
                    status, "application/json", error_body(status, "t", f"said {status}", "r", detail=True)
                )
            client_key = parse_client_key(self.headers["X-Public-Key"])
            payload_id = parse_payload_id(self.headers["X-Payload-ID"])
            stream = parse_stream(self.headers["X-Envelope-Stream"])
            opened = open_package(package, [server_key], random=os.urandom)
            for refused in (client_key, payload_id, stream, opened):
                if isinstance(refused, Refusal):
                    return self._send(400, "application/json", refused.body("r"))
            assert not isinstance(client_key, Refusal)
            assert isinstance(payload_id, str)
            assert isinstance(opened, Opened)
            with opened:
                given = answer(json.loads(opened.plaintext))
                if isinstance(given, list):
                    return self._stream(client_key, opened, payload_id, given)
            tier = self.headers.get("X-Security-Tier", "standard")
            metadata = response_metadata(
                payload_id=payload_id, processed_at=NOW, security_tier=tier, protection=PROTECTION
            )
            plain = add_metadata(json.dumps(given).encode(), metadata)
            sealed = seal(plain, client_key, random=os.urandom, processed_at=NOW)
            return self._send(200, "application/octet-stream", sealed)

        def _stream(self, client_key: RSAPublicKey, opened: Opened, payload_id: str, events: list[bytes]) -> None:
            sealer = StreamSealer(client_key, opened.request_key, payload_id, random=os.urandom, processed_at=NOW)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("X-Envelope-Stream", "1")
            self.end_headers()
            self.wfile.write(sealer.start())
            for event in events:
                self.wfile.write(sealer.event(event))
            self.wfile.write(sealer.finish())

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
