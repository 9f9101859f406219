"""TLS as docs/how-to/tls.md has it: its blocks, put into the shipped files, between real parts."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
import yaml

from gateway import probe
from gateway.envoy_config import Address, adapt
from gateway.port import free_port
from tests import harness
from tests.certificates import Authority
from tests.edge.rig import ENVOY, SHIPPED, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Gateway

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "tls.md").read_text(encoding="utf-8")


def block(name: str, directory: Path) -> dict[str, Any]:
    """A block of the page, with its files in `directory`."""
    (text,) = re.findall(rf"```yaml {name}\n(.*?)```", PAGE, re.DOTALL)
    found: dict[str, Any] = yaml.safe_load(text.replace("/etc/envoy/tls", str(directory)))
    return found


def place(directory: Path, name: str, content: dict[str, Any]) -> Path:
    path = directory / name
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


class Parts:
    """Both services over mutual TLS on TCP, with the shared gateway's stores, and an Envoy of their own before them."""

    def __init__(self, gateway: Gateway, directory: Path) -> None:
        self.authority = Authority(directory)
        names = ("policy", "policy_edge", "policy_http", "processor", "processor_edge", "front")
        self.ports = {name: free_port() for name in names}
        self.files = {name: self.authority.issue(name) for name in ("policy", "processor", "envoy")}
        self._running: list[subprocess.Popen[bytes]] = []
        try:
            self._begin(gateway, directory)
        except BaseException:
            self.stop()
            raise

    def _begin(self, gateway: Gateway, directory: Path) -> None:
        for name in ("policy", "processor"):
            self._start([sys.executable, "-m", name], directory / f"{name}.log", self._environment(gateway, name))
        harness.eventually(
            lambda: all(map(self._accepts, ("policy", "policy_edge", "policy_http", "processor"))), patience=30
        )
        config = self._config(gateway, directory)
        self._start(
            [str(ENVOY), "-c", str(config), "--disable-hot-restart", "--concurrency", "1", "-l", "warn"],
            directory / "envoy.log",
        )
        self.url = f"http://127.0.0.1:{self.ports['front']}"
        until(lambda: self._answers("/readyz"), (directory / "envoy.log").read_text)

    def _environment(self, gateway: Gateway, name: str) -> dict[str, str]:
        chain, key = self.files[name]
        return {
            **os.environ,
            "PADDOCK_DATABASE_URL": gateway.instance.running.database_url,
            "PADDOCK_REDIS_URL": gateway.instance.running.redis_url,
            "PADDOCK_UPSTREAMS": gateway.upstream.url,
            "PADDOCK_POLICY_LISTEN": f"127.0.0.1:{self.ports['policy']}",
            "PADDOCK_POLICY_HTTP_LISTEN": f"127.0.0.1:{self.ports['policy_http']}",
            "PADDOCK_POLICY_EDGE_LISTEN": f"127.0.0.1:{self.ports['policy_edge']}",
            "PADDOCK_PROCESSOR_LISTEN": f"127.0.0.1:{self.ports['processor']}",
            "PADDOCK_PROCESSOR_EDGE_LISTEN": f"127.0.0.1:{self.ports['processor_edge']}",
            "PADDOCK_TLS_CERT_FILE": str(chain),
            "PADDOCK_TLS_KEY_FILE": str(key),
            "PADDOCK_TLS_CLIENT_CA_FILE": str(self.authority.certificate),
        }

    def _config(self, gateway: Gateway, directory: Path) -> Path:
        addresses = {name: [Address("127.0.0.1", port)] for name, port in self.ports.items()}
        config = adapt(
            SHIPPED / "envoy.yaml",
            SHIPPED / "clusters.yaml",
            listen=addresses["front"][0],
            admin=Address(path=str(directory / "admin.sock")),
            policy=addresses["policy"],
            policy_edge=addresses["policy_edge"],
            policy_http=addresses["policy_http"],
            processor=addresses["processor"],
            processor_edge=addresses["processor_edge"],
            upstreams=[gateway.upstream.url],
            max_request_body_bytes=262144,
            options=["mtls"],
        ).folded()
        place(directory, "envoy.yaml", block("cluster-certificate", directory))
        place(directory, "services.yaml", block("cluster-authority", directory))
        text = yaml.safe_dump(config).replace("/etc/envoy/tls", str(directory))
        return place(directory, "bootstrap.yaml", yaml.safe_load(text))

    def _start(self, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        with log.open("wb") as file:
            self._running.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file))

    def _accepts(self, name: str) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.ports[name])) == 0

    def _answers(self, path: str) -> bool:
        try:
            return asyncio.run(probe.get(f"{self.url}{path}"))[0] == 200
        except OSError:
            return False

    def shown(self, name: str) -> bytes | None:
        """The certificate that a caller of the CA is shown."""
        context = ssl.create_default_context(cafile=self.authority.certificate)
        context.load_cert_chain(*self.files["envoy"])
        context.set_alpn_protocols(["h2"])
        with socket.create_connection(("127.0.0.1", self.ports[name])) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as tls:
                return tls.getpeercert(binary_form=True)

    def stop(self) -> None:
        for one in self._running:
            one.send_signal(signal.SIGTERM)
        for one in self._running:
            one.wait(60)


@pytest.fixture(scope="module")
def parts(gateway: Gateway) -> Iterator[Parts]:
    with tempfile.TemporaryDirectory(prefix="tls") as directory:
        running = Parts(gateway, Path(directory))
        try:
            yield running
        finally:
            running.stop()


def _ask(parts: Parts, key: str) -> list[int]:
    with httpx.Client(base_url=parts.url, headers={"authorization": f"Bearer {key}"}, trust_env=False) as client:
        body = {"model": harness.MODELS[0], "messages": [{"role": "user", "content": "hello"}], "stream": False}
        return [client.get("/api/tags").status_code, client.post("/api/chat", json=body, timeout=30).status_code]


def test_requests_pass_and_new_certificates_are_used(parts: Parts, gateway: Gateway) -> None:
    key = gateway.client().key
    assert _ask(parts, key) == [200, 200]
    for name in ("policy", "processor"):
        before = parts.shown(name)
        parts.authority.issue(name)
        harness.eventually(lambda: parts.shown(name) != before)  # noqa: B023  # called at once
    for name in ("policy_edge", "policy_http"):
        parts.shown(name)  # the handshake that notices
        assert parts.shown(name) == parts.shown("policy")
    assert _ask(parts, key) == [200, 200]


@pytest.mark.parametrize("name", ["policy", "processor"])
def test_a_caller_of_nobody_is_refused(parts: Parts, name: str, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "somebody else")
    chain, key = stranger.issue("envoy")
    trust = parts.authority.certificate.read_bytes()
    for credentials in (
        grpc.ssl_channel_credentials(trust),
        grpc.ssl_channel_credentials(trust, key.read_bytes(), chain.read_bytes()),
    ):
        with grpc.secure_channel(f"localhost:{parts.ports[name]}", credentials) as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                "/envoy.service.auth.v3.Authorization/Check"
            )
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_half_of_the_settings_is_refused(parts: Parts) -> None:
    environment = {**os.environ, "PADDOCK_TLS_CERT_FILE": str(parts.files["policy"][0])}
    done = subprocess.run([sys.executable, "-m", "policy"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "set together or not at all" in done.stderr
