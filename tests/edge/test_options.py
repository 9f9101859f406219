"""The options of the shipped files: each alone and all together hold what must hold, and Envoy takes them."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest
import yaml

from gateway import cli
from gateway.envoy_options import turned_on
from gateway.port import free_port
from tests import harness
from tests.certificates import Authority
from tests.edge.rig import ENVOY, SHIPPED, until
from tests.edge.test_tls import block, place

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = {name: (SHIPPED / name).read_text(encoding="utf-8") for name in ("envoy.yaml", "clusters.yaml")}
OPTIONS = {name: sorted(set(re.findall(r"^ +#([a-z]+)# ", text, re.MULTILINE))) for name, text in TEXTS.items()}
EVERY = OPTIONS["envoy.yaml"] + OPTIONS["clusters.yaml"]


def deployed(directory: Path, *options: str) -> Path:
    """The shipped files in a directory of their own, with these options as an operator turns them on."""
    for name in TEXTS:
        shutil.copy(SHIPPED / name, directory)
        for option in set(options) & set(OPTIONS[name]):
            subprocess.run(["sed", "-i", f"s/#{option}# //", str(directory / name)], check=True)
    shutil.copy(SHIPPED / "meter.lua", directory)
    clusters = directory / "clusters.yaml"
    text = clusters.read_text(encoding="utf-8")
    clusters.write_text(text.replace("/etc/envoy/tls", str(directory / "tls")), encoding="utf-8")
    path = directory / "envoy.yaml"
    text = path.read_text(encoding="utf-8").replace("/etc/envoy/tls", str(directory / "tls"))
    for name in ("clusters.yaml", "meter.lua"):
        text = text.replace(f"/etc/envoy/{name}", str(directory / name))
    path.write_text(text, encoding="utf-8")
    return path


def with_certificates(directory: Path) -> Authority:
    """What docs/how-to/tls.md puts below /etc/envoy/tls."""
    tls = directory / "tls"
    authority = Authority(tls)
    for name, alias in (("front", "fullchain.pem"), ("envoy", "envoy.pem")):
        chain, key = authority.issue(name)
        chain.rename(tls / alias)
        key.rename(tls / ("key.pem" if name == "front" else "envoy.key"))
    for name, file in (
        ("front-secret", "front"),
        ("cluster-certificate", "envoy"),
        ("cluster-authority", "services"),
        ("upstream-secret", "upstream"),
    ):
        place(tls, f"{file}.yaml", block(name, tls))
    return authority


def test_there_are_these_options() -> None:
    assert OPTIONS == {"envoy.yaml": ["mtls", "tls", "tracing"], "clusters.yaml": ["https", "key"]}
    for name, text in TEXTS.items():
        for option in OPTIONS[name]:
            assert yaml.safe_load(turned_on(text, [option])) != yaml.safe_load(text)
        with pytest.raises(ValueError, match="no option sound"):
            turned_on(text, ["sound"])


@pytest.mark.parametrize("options", [*((option,) for option in EVERY), tuple(EVERY)], ids=str)
def test_what_must_hold_holds(options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_certificates(tmp_path)
    assert cli.main(["check", str(deployed(tmp_path, *options)), str(tmp_path / "clusters.yaml")]) == 0
    assert "envoy" in capsys.readouterr().err


def test_the_shipped_file_speaks_tls(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The file as it is, but for ports and paths: HTTPS, and a new certificate without a restart."""
    directory = tmp_path_factory.mktemp("o")
    authority = with_certificates(directory)
    path = deployed(directory, "tls")
    port, admin = free_port(), free_port()
    text = path.read_text(encoding="utf-8")
    for shipped, here in (("0.0.0.0, port_value: 8080", f"127.0.0.1, port_value: {port}"), ("9901", str(admin))):
        assert shipped in text
        text = text.replace(shipped, here)
    path.write_text(text, encoding="utf-8")
    options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "error"]
    with (directory / "log").open("wb") as log:
        envoy = subprocess.Popen([str(ENVOY), "-c", str(path), *options], stdout=log, stderr=log)
    trust = ssl.create_default_context(cafile=authority.certificate)

    def healthy() -> bool:
        try:
            answer = httpx.get(f"https://127.0.0.1:{port}/healthz", verify=trust, trust_env=False)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", port))

    try:
        until(healthy, (directory / "log").read_text)
        look = yaml.safe_load((SHIPPED.parent / "compose.yaml").read_text(encoding="utf-8"))
        command = look["services"]["envoy"]["healthcheck"]["test"][1:]
        command = [word.replace("127.0.0.1/9901", f"127.0.0.1/{admin}").replace("$$", "$") for word in command]
        assert subprocess.run(command, check=False, timeout=10).returncode == 0, "compose would call it unhealthy"
        before = shown()
        chain, key = authority.issue("front")
        key.rename(directory / "tls" / "key.pem")
        chain.rename(directory / "tls" / "fullchain.pem")
        harness.eventually(lambda: shown() != before)
        assert healthy()
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
    finally:
        envoy.terminate()
        envoy.wait()
