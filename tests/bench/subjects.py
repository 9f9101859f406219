"""What is compared: the upstream itself, an Envoy that only proxies, and Paddock with everything on."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import psutil
import yaml

from gateway.embedded import envoy_program
from gateway.instance import Instance
from gateway.launch import Config
from gateway.port import free_port
from tests.harness import Gateway, Upstream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

GATEWAY_CORE, LOAD_CORE = 0, 1
# The load straight on the stub: no figure of another subject can be better than the load and the stub themselves allow.
CEILING = "upstream alone (the load's ceiling)"
_EXTENSIONS = "type.googleapis.com/envoy.extensions"


@dataclass
class Subject:
    """One thing under load, with the processes whose time and memory count."""

    name: str
    url: str
    key: str
    pids: dict[str, int]

    def cpu(self) -> float:
        """CPU seconds of all its processes and their children so far."""
        return sum(self.cpu_of_parts().values())

    def cpu_of_parts(self) -> dict[str, float]:
        """The same, of each part."""
        return {name: sum(_cpu(process) for process in _family(pid)) for name, pid in self.pids.items()}

    def resident(self) -> dict[str, int]:
        """Resident bytes of each part; memory that children share with it counts once (as proportional set size)."""
        return {
            name: sum(process.memory_full_info().pss for process in _family(pid)) for name, pid in self.pids.items()
        }


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:  # a database backend that ended
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)  # also of those that ended


def pin(pids: Iterable[int], *cores: int) -> None:
    """Put processes, their children and all their threads on these cores. What they start later goes there too."""
    for pid in pids:
        for process in _family(pid):
            with contextlib.suppress(psutil.NoSuchProcess):  # a database's worker that ended meanwhile
                for thread in process.threads():
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(thread.id, set(cores))


@contextlib.contextmanager
def stub(*, pinned: bool = True) -> Iterator[Subject]:
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.stub"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    if pinned:
        pin([process.pid], LOAD_CORE)
    try:
        yield Subject(CEILING, f"http://127.0.0.1:{port}", "none", {"stub": process.pid})
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def bare_envoy(upstream: Subject, directory: Path) -> Iterator[Subject]:
    """An Envoy with a route and a cluster, and nothing else."""
    number = free_port()
    at = int(upstream.url.rpartition(":")[2])
    manager = {
        "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bare",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "bare",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{_EXTENSIONS}.filters.http.router.v3.Router"},
            }
        ],
    }
    filters = [{"name": "http", "typed_config": manager}]
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": at}}}}
    config = {
        "static_resources": {
            "listeners": [
                {
                    "name": "bare",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": number}},
                    "filter_chains": [{"filters": filters}],
                }
            ],
            "clusters": [
                {
                    "name": "upstream",
                    "load_assignment": {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": [endpoint]}]},
                }
            ],
        }
    }
    path = directory / "bare.yaml"
    path.write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        [str(envoy_program()), "-c", str(path), "--disable-hot-restart", "--concurrency", "1", "--log-level", "error"]
    )
    try:
        url = f"http://127.0.0.1:{number}"
        _answers(url)
        pin([process.pid], GATEWAY_CORE)
        yield Subject("bare Envoy", url, "none", {"envoy": process.pid})
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            if httpx.get(f"{url}/v1/models", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, f"{url} does not answer"
        time.sleep(0.02)


@contextlib.contextmanager
def paddock(upstream: Subject, directory: Path) -> Iterator[tuple[Subject, Gateway]]:
    """The whole gateway: PostgreSQL, Valkey, limits, budgets, ledger and metrics on; one worker of each service."""
    config = Config(
        data_dir=directory,
        upstreams=(upstream.url,),
        port=0,
        announce=False,
        envoy_threads=1,
        address_rate=10**6,  # all load comes from one address: the bound for one is not what is measured
    )
    with Instance(config) as instance:
        gateway = Gateway(instance, Upstream(), directory)
        limits = ("--rpm", "100000000", "--tpm", "1000000000000", "--budget-month", "1000000000000000")
        key = gateway.client(None, *limits, tenant_options=limits).key
        pids = instance.pids()
        pin(pids.values(), GATEWAY_CORE)
        try:
            yield Subject("Paddock", instance.url, key, pids), gateway
        finally:
            gateway.close()


def megabytes(size: float) -> str:
    return f"{size / 1e6:.0f}"


def version() -> str:
    """Envoy's version, for the report."""
    text = subprocess.run([str(envoy_program()), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"/(\d+\.\d+\.\d+)/", text)
    return found[1] if found else "?"
