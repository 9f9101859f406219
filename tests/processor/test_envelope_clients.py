"""Published clients against the pure core: the Python package, unmodified, and a Node script with WebCrypto alone.

Between them and the core stands `envelope_peer`, not the gateway: this is about the format. The same clients walk
through Envoy in `tests/clients`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from processor.server_key_files import fingerprint
from tests.clients.nomyo_environment import DRIVER, nomyo_python
from tests.processor.envelope_peer import NOW, gateway

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "how-to" / "encrypted-clients"
NODE = shutil.which("node")
Client = list[str]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
needs_node = pytest.mark.skipif(NODE is None, reason="node is not on this machine: JavaScript clients are NOT checked")


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=4096)


@pytest.fixture(scope="module", params=["nomyo", pytest.param("node", marks=needs_node)])
def published(request: pytest.FixtureRequest) -> Client:
    if request.param == "nomyo":
        return [str(nomyo_python()), str(DRIVER)]
    return [str(NODE), str(ROOT / "tests" / "clients" / "envelope_node.mjs")]


def drive(client: Client, **job: Any) -> list[dict[str, Any]]:
    quiet = {"PATH": os.environ["PATH"], "NO_PROXY": "*"}
    done = subprocess.run(client, input=json.dumps(job), capture_output=True, text=True, timeout=90, env=quiet)
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def echo(request: dict[str, object]) -> dict[str, object]:
    return {"object": "chat.completion", "choices": [], "asked": request}


@pytest.mark.parametrize("bits", [2048, 4096])
def test_a_published_client_chats(key: rsa.RSAPrivateKey, published: Client, bits: int) -> None:
    messages = [{"role": "user", "content": "Wie geht's? 東京 🦙 \u2028"}]
    requests: list[dict[str, Any]] = [
        {"model": "llama3.1:8b", "messages": messages, "tools": TOOLS, "temperature": 0.5, "security_tier": tier}
        for tier in ("standard", "high", "maximum")
    ]
    requests.append({"model": "llama3.1:8b", "messages": [{"role": "user", "content": "x" * 1_000_000}]})
    with gateway(key, echo) as url:
        results = drive(published, base_url=url, api_key="nz_k", key_bits=bits, requests=requests)
    for request, result in zip(requests, results, strict=True):
        assert result["ok"], result
        tier = request.pop("security_tier", "standard")
        assert result["response"]["asked"] == request
        metadata = result["response"]["_metadata"]
        assert metadata.pop("payload_id")
        assert metadata == {
            "processed_at": NOW,
            "is_encrypted": True,
            "encryption_algorithm": "hybrid-aes256-rsa4096",
            "response_status": "success",
            "security_tier": tier,
            "memory_protection": {
                "platform": "linux",
                "memory_locking": False,
                "secure_zeroing": True,
                "core_dump_prevention": True,
            },
            "cuda_device": {"available": False, "device_hash": ""},
        }


def test_a_published_client_knows_each_error(key: rsa.RSAPrivateKey, published: Client) -> None:
    expected = {
        400: "InvalidRequestError",
        401: "AuthenticationError",
        403: "ForbiddenError",
        404: "APIError",
        429: "RateLimitError",
        500: "ServerError",
        502: "APIError",
        503: "ServiceUnavailableError",
        504: "APIError",
    }
    requests = [{"model": "m", "messages": [], "api_key": f"status-{status}"} for status in expected]
    with gateway(key, echo) as url:
        results = drive(published, base_url=url, key_bits=2048, requests=requests)
    for (status, name), result in zip(expected.items(), results, strict=True):
        assert (result["error"], result["status"]) == (name, status)
        assert f"said {status}" in result["message"]


def chunks(request: dict[str, object]) -> list[bytes]:
    assert request["stream"] is True
    words = ["Grüß ", "Gott", "!"]
    events = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in words]
    return [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events] + [b"data: [DONE]\n\n"]


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(lambda: [sys.executable, str(EXAMPLES / "stream_client.py")], id="python"),
        pytest.param(lambda: [str(NODE), str(EXAMPLES / "stream_client.mjs")], id="node", marks=needs_node),
    ],
)
def test_the_example_clients_print_an_encrypted_stream(key: rsa.RSAPrivateKey, example: Callable[[], Client]) -> None:
    pins = {fingerprint(key.public_key()): "Grüß Gott!\n", "0" * 64: ""}
    with gateway(key, chunks) as url:
        for pin, printed in pins.items():
            call = [*example(), url, "nz_k", "llama3.1:8b", "hello", pin]
            done = subprocess.run(call, capture_output=True, text=True, timeout=60, encoding="utf-8")
            assert done.stdout == printed, done.stderr
            assert (done.returncode == 0) == bool(printed)
        assert "not the pinned one" in done.stderr
