"""The shipped Envoy configuration, fitted to this machine.

`envoy/envoy.yaml` is what every site runs; here it is loaded as data, given the addresses of the parts and the one body
limit, and dumped again. No text template: what Envoy starts from is the shipped file with other figures in it, so a
test or a laptop proves the file that a site deploys.
"""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gateway import envoy_tls, envoy_tracing
from gateway.envoy_envelopes import add_tiers, limit_envelopes
from gateway.envoy_options import turned_on
from gateway.envoy_upstreams import key_from, key_secret, ollama_cluster, options_for

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from gateway.envoy_tls import Certificate

Node = dict[str, Any]  # a YAML mapping: its shape is Envoy's to check, not mypy's

METER = "envoy.filters.http.lua"
# The route may hold a body, and what an earlier filter adds to it, in one piece.
_BUFFER_SLACK = 64 * 1024

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C library is not in every build of PyYAML
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a part listens: host and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `unix:/path`, `host:port` or `[v6]:port`; ValueError on anything else."""
        if text.startswith("unix:"):
            return cls(path=text.removeprefix("unix:"))
        host, separator, port = text.rpartition(":")
        if not separator or not host or not port.isdecimal():
            raise ValueError(f"not an address (unix:/path or host:port): {text}")
        return cls(host=host.removeprefix("[").removesuffix("]"), port=int(port))

    def node(self) -> Node:
        """The address in Envoy's words."""
        if self.path:
            return {"pipe": {"path": self.path}}
        return {"socket_address": {"address": self.host, "port_value": self.port}}


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests one client address may make: `burst` at once, `per_second` in the long run."""

    per_second: int
    burst: int


@dataclass(frozen=True, slots=True)
class Config:
    """A bootstrap and the file of Ollama hosts that it reads."""

    bootstrap: Node
    clusters: Node
    upstream_key: str = field(default="", repr=False)

    def folded(self) -> Node:
        """One bootstrap with the Ollama cluster inside: `envoy --mode validate` does not look into the second file."""
        whole = copy.deepcopy(self.bootstrap)
        del whole["dynamic_resources"]
        for cluster in copy.deepcopy(self.clusters)["resources"]:
            cluster.pop("@type")
            whole["static_resources"]["clusters"].append(cluster)
        return whole


def adapt(
    shipped: Path,
    clusters: Path,
    *,
    listen: Address,
    admin: Address,
    policy: Sequence[Address],
    policy_edge: Sequence[Address],
    policy_http: Sequence[Address],
    processor: Sequence[Address],
    processor_edge: Sequence[Address],
    upstreams: Sequence[str],
    max_request_body_bytes: int,
    max_envelope_bytes: int | None = None,
    tier_upstreams: Mapping[str, Sequence[str]] | None = None,
    address_rate: Rate | None = None,
    options: Collection[str] = (),
    otlp: str = "",
    upstream_key: str = "",
    upstream_ca: Path | None = None,
    access_log: Path | None = None,
    metering: str = "envoy",
    grpc_checks: bool = False,
) -> Config:
    """The shipped configuration with these addresses and this limit.

    `upstreams` are base URLs of Ollama hosts; `tier_upstreams` those of security tiers that have their own.
    `max_envelope_bytes` and `address_rate` replace the shipped size of an envelope and the shipped limit for each
    client address. `options` of envoy.yaml are turned on; `otlp`, the URL of a collector's traces, turns tracing on.
    `upstream_key` is what the Ollama hosts demand (`write` puts it into a file of its own), `upstream_ca` what their
    certificates are of. `access_log` is a file for the lines that go to standard output as shipped: a file can be
    opened anew while Envoy runs. `metering` is `envoy`, as shipped, or `processor`: then no route turns the meter on.
    With `grpc_checks` policy is asked over gRPC, as a mesh asks it. Raises ValueError on a URL that Envoy cannot be
    pointed at.
    """
    bootstrap = _load(shipped, [*options, "tracing"] if otlp else options)
    bootstrap["admin"]["address"] = admin.node()
    front = bootstrap["static_resources"]["listeners"][0]
    front["address"] = listen.node()
    for name, addresses in (
        ("policy", policy),
        ("policy_edge", policy_edge),
        ("policy_http", policy_http),
        ("processor", processor),
        ("processor_edge", processor_edge),
    ):
        _move(_cluster(bootstrap, name), addresses)
    _find_meter(front, shipped.parent)
    if metering == "processor":
        _without_meter(front)
    _limit_bodies(front, max_request_body_bytes)
    limit_envelopes(_manager(front), max_envelope_bytes, plain=max_request_body_bytes, slack=_BUFFER_SLACK)
    if otlp:
        envoy_tracing.send_to(otlp, _manager(front), bootstrap["static_resources"]["clusters"])
    if address_rate is not None:
        _limit_addresses(front, address_rate)
    if grpc_checks:
        _ask_over_grpc(front)
    if access_log is not None:
        _log_into(_manager(front), access_log)
    every = [*upstreams, *(url for urls in (tier_upstreams or {}).values() for url in urls)]
    hosts = _load(clusters, options_for(every, upstream_key))
    add_tiers(_manager(front), hosts, tier_upstreams or {}, upstream_ca)
    for number, cluster in enumerate(hosts["resources"]):
        if cluster["name"] == "ollama":
            hosts["resources"][number] = ollama_cluster(cluster, upstreams, upstream_ca)
    return Config(bootstrap, hosts, upstream_key)


def write(config: Config, directory: Path, certificate: Certificate | None = None) -> Path:
    """Put `envoy.yaml` and `clusters.yaml` into `directory`; the path of the first is what Envoy starts from. With a
    certificate `tls.yaml` names its files, for a listener with the option `tls`.

    Both arrive by rename: a running Envoy reads `clusters.yaml` again at that moment and never sees half a file.
    """
    directory = directory.resolve()
    bootstrap = copy.deepcopy(config.bootstrap)
    hosts = directory / "clusters.yaml"
    bootstrap["dynamic_resources"]["cds_config"]["path_config_source"]["path"] = str(hosts)
    clusters = copy.deepcopy(config.clusters)
    if config.upstream_key:
        key = directory / "upstream-key.yaml"
        _place(key, key_secret(config.upstream_key))
        for cluster in clusters["resources"]:
            key_from(key, cluster)
    _place(hosts, clusters)
    if certificate is not None:
        secret = directory / "tls.yaml"
        _place(secret, certificate.secret())
        envoy_tls.serve(bootstrap["static_resources"]["listeners"][0], secret)
    target = directory / "envoy.yaml"
    _place(target, bootstrap)
    return target


def _load(path: Path, options: Collection[str] = ()) -> Node:
    text = turned_on(path.read_text(encoding="utf-8"), options)
    node = yaml.load(text, Loader=_LOADER)  # noqa: S506  # a safe loader, in C
    if not isinstance(node, dict):
        raise ValueError(f"{path}: not a YAML mapping")
    plain: Node = json.loads(json.dumps(node))  # no aliases: what changes in one route stays as it was in the next
    return plain


def _place(path: Path, node: Node) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    text = yaml.dump(node, Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)  # of this user alone: one of these files may hold a key
    os.replace(fresh, path)


def _cluster(bootstrap: Node, name: str) -> Node:
    return next(c for c in bootstrap["static_resources"]["clusters"] if c["name"] == name)


def _move(cluster: Node, addresses: Sequence[Address]) -> None:
    if not addresses:
        raise ValueError(f"{cluster['name']}: no address")
    endpoints = [{"endpoint": {"address": address.node()}} for address in addresses]
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
    if any(address.path for address in addresses):
        # Unix sockets have no names to resolve, and no peer that could vanish without a word.
        del cluster["cluster_type"]
        cluster.pop("upstream_connection_options", None)
        cluster["type"] = "STATIC"


def _limit_bodies(listener: Node, limit: int) -> None:
    """The four places that must agree, or a large body stalls instead of being refused."""
    manager = _manager(listener)
    for http_filter in manager["http_filters"]:
        settings = http_filter["typed_config"]
        if http_filter["name"] == "envoy.filters.http.body_size_limit":
            settings["max_request_bytes"] = limit
        elif http_filter["name"] == "envoy.filters.http.ext_authz":
            settings["with_request_body"]["max_request_bytes"] = limit
    for host in manager["route_config"]["virtual_hosts"]:
        host["request_body_buffer_limit"] = limit + _BUFFER_SLACK
        for route in host["routes"]:
            if "request_body_buffer_limit" in route:  # a route that also holds whole answers keeps the larger figure
                route["request_body_buffer_limit"] = max(route["request_body_buffer_limit"], limit + _BUFFER_SLACK)


def _find_meter(listener: Node, directory: Path) -> None:
    """The script lies beside the configuration."""
    for http_filter in _manager(listener)["http_filters"]:
        if http_filter["name"] == METER:
            source = http_filter["typed_config"]["default_source_code"]
            source["filename"] = str((directory / Path(source["filename"]).name).resolve())


def _without_meter(listener: Node) -> None:
    for host in _manager(listener)["route_config"]["virtual_hosts"]:
        for route in host["routes"]:
            filters = route.get("typed_per_filter_config", {})
            if filters.pop(METER, None) is not None:
                del filters["envoy.filters.http.ext_proc"]


def _ask_over_grpc(listener: Node) -> None:
    for http_filter in _manager(listener)["http_filters"]:
        if http_filter["name"] == "envoy.filters.http.ext_authz":
            settings = http_filter["typed_config"]
            asked = settings.pop("http_service")
            settings["grpc_service"] = {
                "envoy_grpc": {"cluster_name": "policy"},
                "timeout": asked["server_uri"]["timeout"],
                "retry_policy": asked["retry_policy"],
            }


def _limit_addresses(listener: Node, rate: Rate) -> None:
    for http_filter in _manager(listener)["http_filters"]:
        if http_filter["name"] == "envoy.filters.http.local_ratelimit":
            for bucket in _buckets(http_filter["typed_config"]):
                bucket.update(max_tokens=rate.burst, tokens_per_fill=rate.per_second)


def _log_into(manager: Node, path: Path) -> None:
    for log in manager["access_log"]:
        if log["name"] == "envoy.access_loggers.stdout":
            log["name"] = "envoy.access_loggers.file"
            log["typed_config"]["@type"] = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
            log["typed_config"]["path"] = str(path)


def _buckets(settings: Node) -> Iterator[Node]:
    yield settings["token_bucket"]
    for descriptor in settings["descriptors"]:
        yield descriptor["token_bucket"]


def _manager(listener: Node) -> Node:
    manager: Node = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager
