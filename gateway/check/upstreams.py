"""The clusters: the Ollama hosts, how one is chosen, and that TLS to them means something."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz
from envoy_data_plane.envoy.extensions.load_balancing_policies.override_host.v3 import OverrideHost
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import UpstreamTlsContext

from gateway.check.site import (
    AUTHZ_NAMESPACE,
    EDGE,
    OWN,
    POLICY,
    PROCESSOR,
    PROCESSOR_NAMESPACE,
    SETTLING,
    Finding,
    Rule,
    Site,
    destinations,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envoy_data_plane.envoy.config.cluster.v3 import Cluster
    from envoy_data_plane.envoy.config.core.v3 import TransportSocket

KNOWN = Rule(
    "unknown-cluster", "the route would answer 503", "define the cluster in clusters.yaml, or correct its name"
)
HOSTS = Rule(
    "upstream-hosts",
    "policy would send requests to hosts that Envoy does not know, or never use some",
    "name the same hosts in clusters.yaml and in PADDOCK_UPSTREAMS",
)
CHOICE = Rule(
    "host-choice",
    "requests would go to hosts that lack the model, or where a client wants",
    "let override_host read the metadata envoy.filters.http.ext_authz: upstream",
)
SHARED = Rule(
    "shared-address",
    "routes that need no key lead to that cluster",
    "give each cluster its own address",
)
VERIFIED = Rule(
    "tls-unverified",
    "whoever answers at that address could read prompts, or judge requests",
    "set a validation_context with trusted_ca, and the name to expect",
)
_PORTS = {"http": 80, "https": 443}


def check(site: Site) -> Iterator[Finding]:
    clusters = {cluster.name: cluster for cluster in site.every_cluster()}
    for path in site.routes():
        for name in destinations(path.route):
            if name not in clusters:
                yield site.finding(KNOWN, f"no cluster is named {name}", path.route)
    needed = {POLICY, PROCESSOR}
    if any(authz.http_service is not None for authz in site.each(ExtAuthz)):
        needed.add(EDGE)
    if any(site.metered(path) for path in site.routes()):
        needed.add(SETTLING)
    for name in sorted(needed - clusters.keys()):
        yield site.finding(KNOWN, f"no cluster is named {name}", site.bootstrap)
    upstream = [cluster for name, cluster in clusters.items() if name not in OWN]
    used = {name for path in site.routes() for name in destinations(path.route)}
    for cluster in upstream:
        if cluster.name in used:
            yield from _choice(site, cluster)
            yield from _hosts(site, cluster)
            yield from _shared(site, cluster, clusters)
    for cluster in clusters.values():
        yield from _verified(site, cluster)


def addresses(cluster: Cluster) -> list[tuple[str, int]]:
    """Host and port of each endpoint; a pipe is its path and 0."""
    found = []
    for locality in cluster.load_assignment.endpoints if cluster.load_assignment else ():
        for one in locality.lb_endpoints:
            address = one.endpoint.address if one.endpoint else None
            if address is not None and address.socket_address is not None:
                found.append((address.socket_address.address.lower(), address.socket_address.port_value or 0))
            elif address is not None and address.pipe is not None:
                found.append((address.pipe.path, 0))
    return found


def _choice(site: Site, cluster: Cluster) -> Iterator[Finding]:
    policies = cluster.load_balancing_policy.policies if cluster.load_balancing_policy else []
    chosen = [site.unpacked(one.typed_extension_config.typed_config) for one in policies if one.typed_extension_config]
    overrides = [one for one in chosen if isinstance(one, OverrideHost)]
    if not overrides and len(addresses(cluster)) > 1:
        yield site.finding(CHOICE, f"{cluster.name} has several hosts and no override_host policy", cluster)
    for override in overrides:
        for source in override.override_host_sources:
            if source.header and not source.header.lower().startswith("x-paddock-"):
                yield site.finding(CHOICE, f"the header {source.header} chooses the host", source)
            metadata = source.metadata
            if metadata is not None and metadata.key not in (AUTHZ_NAMESPACE, PROCESSOR_NAMESPACE):
                yield site.finding(CHOICE, f"metadata of {metadata.key} chooses the host", source)


def _hosts(site: Site, cluster: Cluster) -> Iterator[Finding]:
    if not site.upstreams or cluster.name != "ollama":
        return
    wanted = {_host(url) for url in site.upstreams}
    found = set(addresses(cluster))
    for host, port in sorted(wanted - found):
        yield site.finding(HOSTS, f"{host}:{port} of PADDOCK_UPSTREAMS is no host of {cluster.name}", cluster)
    for host, port in sorted(found - wanted):
        yield site.finding(HOSTS, f"{host}:{port} is not in PADDOCK_UPSTREAMS", cluster)


def _host(url: str) -> tuple[str, int]:
    parts = urlsplit(url.strip())
    return (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)


def _shared(site: Site, cluster: Cluster, clusters: dict[str, Cluster]) -> Iterator[Finding]:
    for name in sorted(OWN):
        own = addresses(clusters[name]) if name in clusters else []
        for host, port in set(own).intersection(addresses(cluster)):
            yield site.finding(SHARED, f"{name} and {cluster.name} both are {host}:{port}", clusters[name])


def _verified(site: Site, cluster: Cluster) -> Iterator[Finding]:
    sockets: list[TransportSocket | None] = [
        cluster.transport_socket, *(one.transport_socket for one in cluster.transport_socket_matches)
    ]  # fmt: skip
    for socket in sockets:
        tls = site.unpacked(socket.typed_config) if socket is not None else None
        if not isinstance(tls, UpstreamTlsContext):
            continue
        common = tls.common_tls_context
        checks = common is not None and (
            common.validation_context is not None
            or common.validation_context_sds_secret_config is not None
            or common.combined_validation_context is not None
        )
        if not checks:
            yield site.finding(VERIFIED, f"TLS to {cluster.name} takes any certificate", tls)
