"""The clusters: the Ollama hosts, how one is chosen, and that no two of them are one."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from envoy_data_plane.envoy.config.cluster.v3 import ClusterDiscoveryType
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz
from envoy_data_plane.envoy.extensions.load_balancing_policies.override_host.v3 import OverrideHost

from gateway.check.edge import ADMIN
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
    from collections.abc import Iterator, Sequence

    from envoy_data_plane.envoy.config.cluster.v3 import Cluster
    from envoy_data_plane.envoy.config.core.v3 import Address

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
    elsewhere = site.elsewhere()
    upstream = [cluster for name, cluster in clusters.items() if name not in OWN | elsewhere]
    used = {name for path in site.routes() for name in destinations(path.route)}
    for cluster in upstream:
        if cluster.name in used:
            yield from _choice(site, cluster)
            yield from _shared(site, cluster, clusters)
    for name in sorted(elsewhere):
        yield from _surely_elsewhere(site, clusters[name], upstream)
    yield from _hosts(site, [cluster for cluster in upstream if cluster.name in used])
    for name, cluster in clusters.items():
        if name in OWN or name in used:
            yield from _own_addresses(site, cluster)


def addresses(cluster: Cluster) -> list[tuple[str, int]]:
    """Host and port of each endpoint; a pipe is its path and 0."""
    found = []
    for locality in cluster.load_assignment.endpoints if cluster.load_assignment else ():
        for one in locality.lb_endpoints:
            if one.endpoint is not None and one.endpoint.address is not None:
                found += _address(one.endpoint.address)
    return found


def _surely_elsewhere(site: Site, cluster: Cluster, upstream: Sequence[Cluster]) -> Iterator[Finding]:
    """Of a cluster that is said to be no Ollama: that no Ollama has an address of it."""
    theirs = {one for other in upstream for one in addresses(other)} | {_host(url) for url in site.upstreams}
    for host, port in sorted(theirs.intersection(addresses(cluster))):
        yield site.finding(SHARED, f"{cluster.name} is said to be no Ollama, and {host}:{port} is one", cluster)
    if not addresses(cluster):
        what = f"{cluster.name} is said to be no Ollama, and its hosts are not in the file"
        yield site.finding(SHARED, what, cluster)


def _own_addresses(site: Site, cluster: Cluster) -> Iterator[Finding]:
    """A cluster's hosts are those that it lists: no other cluster's, none that a request names, and not Envoy."""
    packed = cluster.cluster_type.typed_config if cluster.cluster_type is not None else None
    kind = packed.type_url.rpartition("/")[2] if packed is not None else ""
    if kind.startswith("envoy.extensions.clusters.aggregate."):
        yield site.finding(SHARED, f"{cluster.name} is made of other clusters", cluster, "cluster_type")
    if kind.startswith("envoy.extensions.clusters.dynamic_forward_proxy."):
        yield site.finding(CHOICE, f"the client's Host chooses where {cluster.name} is", cluster, "cluster_type")
    if cluster.type is ClusterDiscoveryType.ORIGINAL_DST or cluster.original_dst_lb_config is not None:
        what = f"the client's connection, or a header, chooses where {cluster.name} is"
        yield site.finding(CHOICE, what, cluster, "type")
    admin = site.bootstrap.admin.address if site.bootstrap.admin else None
    if admin is not None and set(addresses(cluster)).intersection(_address(admin)):
        yield site.finding(ADMIN, f"{cluster.name} is the admin page", cluster, "load_assignment")


def _address(address: Address) -> list[tuple[str, int]]:
    if address.socket_address is not None:
        return [(address.socket_address.address.lower(), address.socket_address.port_value or 0)]
    return [(address.pipe.path, 0)] if address.pipe is not None else []


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


def _hosts(site: Site, upstream: Sequence[Cluster]) -> Iterator[Finding]:
    """PADDOCK_UPSTREAMS and the hosts of all clusters that routes lead to, whatever these are called."""
    if not site.upstreams or not upstream:
        return
    wanted = {_host(url) for url in site.upstreams}
    names = ", ".join(cluster.name for cluster in upstream)
    for host, port in sorted(wanted - {one for cluster in upstream for one in addresses(cluster)}):
        what = f"{host}:{port} of PADDOCK_UPSTREAMS is no host of {names}"
        yield site.finding(HOSTS, what, upstream[0])
    for cluster in upstream:
        for host, port in sorted(set(addresses(cluster)) - wanted):
            yield site.finding(HOSTS, f"{host}:{port} is not in PADDOCK_UPSTREAMS", cluster)


def _host(url: str) -> tuple[str, int]:
    parts = urlsplit(url.strip())
    return (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)


def _shared(site: Site, cluster: Cluster, clusters: dict[str, Cluster]) -> Iterator[Finding]:
    for name in sorted(OWN):
        own = addresses(clusters[name]) if name in clusters else []
        for host, port in set(own).intersection(addresses(cluster)):
            yield site.finding(SHARED, f"{name} and {cluster.name} both are {host}:{port}", clusters[name])
