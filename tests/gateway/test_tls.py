"""`paddock up --tls-cert --tls-key`: HTTPS at the front door, and new certificates without a restart."""

from __future__ import annotations

import hashlib
import socket
import ssl
from typing import TYPE_CHECKING

import httpx
import pytest

from gateway import cli
from gateway.envoy_tls import Certificate
from gateway.instance import Instance
from gateway.launch import Config
from tests import harness
from tests.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path


def _shown(port: int) -> str:
    """The fingerprint of the certificate that a new connection is shown."""
    context = ssl._create_unverified_context()  # noqa: S323  # to look at it, whatever it is
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as tls:
        return hashlib.sha256(tls.getpeercert(binary_form=True) or b"").hexdigest()


def _of(path: Path) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(path.read_text())).hexdigest()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")  # it is what is asked for
def test_https_and_a_renewed_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    chain, key = authority.issue("gateway.example")
    config = Config(data_dir=tmp_path / "data", demo=True, port=0, announce=False, certificate=Certificate(chain, key))
    with Instance(config) as instance:
        assert instance.url.startswith("https://127.0.0.1:")
        trust = ssl.create_default_context(cafile=authority.certificate)
        assert httpx.get(f"{instance.url}/healthz", verify=trust, trust_env=False).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{instance.url}/healthz", trust_env=False)
        port = httpx.URL(instance.url).port
        assert port is not None
        assert _shown(port) == _of(chain)
        with httpx.Client(verify=trust, trust_env=False) as kept:
            assert kept.get(f"{instance.url}/healthz").status_code == 200
            authority.issue("gateway.example")
            harness.eventually(lambda: _shown(port) == _of(chain))
            assert kept.get(f"{instance.url}/healthz").status_code == 200
        old = ssl.create_default_context(cafile=authority.certificate)
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)), socket.create_connection(("127.0.0.1", port)) as plain:
            old.wrap_socket(plain, server_hostname="localhost")


def test_files_that_are_no_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority(tmp_path)
    chain, _ = authority.issue("one")
    _, other = authority.issue("two")
    command = ["up", "--data-dir", str(tmp_path / "data"), "--port", "0", "--upstream", "http://127.0.0.1:1"]
    for options, said in (
        (["--tls-cert", str(chain), "--tls-key", str(other)], "are no certificate and its key"),
        (["--tls-cert", str(chain), "--tls-key", str(tmp_path / "none")], "none cannot be read: No such file"),
        (["--tls-cert", str(chain)], "a certificate needs its key"),
    ):
        assert cli.main([*command, *options]) == 1
        assert said in capsys.readouterr().err
