"""What is checked: a bootstrap, the cluster file it reads, and what the services beside it are set to.

A rule is a function from a `Site` to findings. It reads typed objects, and for a place names the message and its field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import betterproto2
from envoy_data_plane.envoy.config.route.v3 import FilterConfig
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpFilter,
)

if TYPE_CHECKING:
    from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap
    from envoy_data_plane.envoy.config.cluster.v3 import Cluster
    from envoy_data_plane.envoy.config.listener.v3 import FilterChain
    from envoy_data_plane.envoy.config.route.v3 import Route, RouteConfiguration, VirtualHost
    from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz
    from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import ExternalProcessor
    from envoy_data_plane.google.protobuf import Any as Packed

    from gateway.check.typed import Typed

M = TypeVar("M", bound=betterproto2.Message)

POLICY, EDGE, PAGES = "policy", "policy_edge", "policy_http"
PROCESSOR, SETTLING = "processor", "processor_edge"
OWN = frozenset((POLICY, EDGE, PAGES, PROCESSOR, SETTLING))  # the gateway's own clusters
METER_FILE = "meter.lua"
AUTHZ_NAMESPACE = "envoy.filters.http.ext_authz"
PROCESSOR_NAMESPACE = "paddock"  # ext_proc and the meter may write there, and nobody else


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that must hold: its name, what happens where it does not, and the mend."""

    name: str
    why: str
    mend: str


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One place where a rule does not hold; `note`: worth saying, and no violation."""

    file: str
    line: int
    rule: str
    what: str
    why: str = ""
    mend: str = ""
    note: bool = False

    def __str__(self) -> str:
        kind = "note: " if self.note else ""
        return f"{self.file}:{self.line}: {kind}{self.rule}: " + "; ".join(
            filter(None, (self.what, self.why, self.mend))
        )


class Link(NamedTuple):
    """One HTTP filter of a chain: `settings` is None where its type is not known."""

    http_filter: HttpFilter
    settings: betterproto2.Message | None


class Path(NamedTuple):
    """One route in its place."""

    manager: HttpConnectionManager
    table: RouteConfiguration
    host: VirtualHost
    route: Route


@dataclass(slots=True)
class Site:
    """A whole configuration."""

    main: Typed
    bootstrap: Bootstrap
    files: list[Typed]
    clusters: list[Cluster]  # of the cluster files
    max_request_body_bytes: int
    upstreams: tuple[str, ...] = ()  # PADDOCK_UPSTREAMS where it is set
    directory: FilePath | None = None  # where the bootstrap lies, for files that it names; None: not looked for
    _links: dict[int, list[Link]] = field(default_factory=dict, repr=False)

    def finding(self, rule: Rule, what: str, message: betterproto2.Message, *steps: str | int) -> Finding:
        """A violation at a field of a message of this site."""
        typed = self._of(message)
        return Finding(typed.document.name, typed.line(message, *steps), rule.name, what, rule.why, rule.mend)

    def note(self, rule: Rule, what: str, message: betterproto2.Message, *steps: str | int) -> Finding:
        """Something about a rule that is worth saying, and no violation."""
        return replace(self.finding(rule, what, message, *steps), why="", mend="", note=True)

    def unpacked(self, packed: Packed | None) -> betterproto2.Message | None:
        return None if packed is None else self._of(packed).unpacked(packed)

    def _of(self, message: betterproto2.Message) -> Typed:
        return next((typed for typed in self.files if typed.has(message)), self.main)

    def chains(self) -> Iterator[FilterChain]:
        """Every filter chain of every listener."""
        static = self.bootstrap.static_resources
        for listener in static.listeners if static else ():
            yield from listener.filter_chains
            if listener.default_filter_chain is not None:
                yield listener.default_filter_chain

    def managers(self) -> Iterator[HttpConnectionManager]:
        for chain in self.chains():
            for network_filter in chain.filters:
                settings = self.unpacked(network_filter.typed_config)
                if isinstance(settings, HttpConnectionManager) and not self._leads_nowhere(settings):
                    yield settings

    def _leads_nowhere(self, manager: HttpConnectionManager) -> bool:
        """Whether all that it can do is answer by itself, as the listener does that sends browsers to https."""
        table = manager.route_config
        if table is None or table.vhds is not None or any(host.matcher is not None for host in table.virtual_hosts):
            return False
        routes = [route for host in table.virtual_hosts for route in host.routes]
        return (
            bool(routes)
            and all(route.redirect is not None or route.direct_response is not None for route in routes)
            and all(isinstance(link.settings, Router) for link in self.links(manager))
        )

    def links(self, manager: HttpConnectionManager) -> list[Link]:
        """The HTTP filters of a connection manager, in their order."""
        return [Link(one, self.unpacked(one.typed_config)) for one in manager.http_filters]

    def settings(self, manager: HttpConnectionManager, kind: type[M]) -> list[M]:
        return [link.settings for link in self.links(manager) if isinstance(link.settings, kind)]

    def each(self, kind: type[M]) -> Iterator[M]:
        """The settings of all HTTP filters of a kind."""
        for manager in self.managers():
            yield from self.settings(manager, kind)

    def routes(self) -> Iterator[Path]:
        for manager in self.managers():
            table = manager.route_config
            for host in table.virtual_hosts if table else ():
                for route in host.routes:
                    assert table is not None  # noqa: S101  # it has hosts
                    yield Path(manager, table, host, route)

    def every_cluster(self) -> Iterator[Cluster]:
        static = self.bootstrap.static_resources
        yield from static.clusters if static else ()
        yield from self.clusters

    def to_upstream(self, route: Route) -> bool:
        """Whether a route leads to anything but the gateway's own services and what a site says is no Ollama."""
        if route.route is None:
            return False
        named = set(destinations(route))
        return not named or not named <= OWN | self.elsewhere()

    def elsewhere(self) -> set[str]:
        """The clusters that a site says are no Ollama; `gateway.check.upstreams` asks whether they can be one."""
        return {cluster.name for cluster in self.every_cluster() if cluster.name not in OWN and _no_ollama(cluster)}

    def per_route(self, path: Path, http_filter: HttpFilter) -> betterproto2.Message | None:
        """What the most specific level says of a filter: the route, its virtual host, the table."""
        return next((said for _, said in self.all_levels(path, http_filter)), None)

    def all_levels(
        self, path: Path, http_filter: HttpFilter
    ) -> Iterator[tuple[betterproto2.Message, betterproto2.Message]]:
        """Each level that says something of a filter, the most specific first, and what."""
        for level in (path.route, path.host, path.table):
            packed = level.typed_per_filter_config.get(http_filter.name)
            if packed is None:
                continue
            said = self.unpacked(packed)
            if isinstance(said, FilterConfig) and said.config is not None and not said.disabled:
                packed = said.config  # a wrapper: what counts is in it
                said = self.unpacked(packed)
            yield level, said or packed  # of a type not known: something, and not nothing

    def metered(self, path: Path) -> list[Link]:
        """The meters that are on for a route."""
        return [link for link in self.serving(path, Lua) if is_meter(link.settings)]

    def serving(self, path: Path, kind: type[ExtAuthz | ExternalProcessor | Lua]) -> list[Link]:
        """The filters of a kind that are on for a route."""
        found = []
        for link in self.links(path.manager):
            if isinstance(link.settings, kind):
                said = self.per_route(path, link.http_filter)
                off = getattr(said, "disabled", False) if said is not None else link.http_filter.disabled
                if not off:
                    found.append(link)
        return found


Check = Callable[[Site], Iterator[Finding]]


def is_meter(settings: betterproto2.Message | None) -> bool:
    """Whether a filter is the meter, by the name of its script; `gateway.check.meter` proves that it is."""
    if not isinstance(settings, Lua) or settings.default_source_code is None:
        return False
    return FilePath(settings.default_source_code.filename or "").name == METER_FILE


def destinations(route: Route) -> list[str]:
    """The clusters a route names; a route that finds its cluster in another way names none."""
    action = route.route
    if action is None:
        return []
    weighted = action.weighted_clusters.clusters if action.weighted_clusters else []
    return [name for name in (action.cluster, *(one.name for one in weighted)) if name]


def _no_ollama(cluster: Cluster) -> bool:
    said = cluster.metadata.filter_metadata.get(PROCESSOR_NAMESPACE) if cluster.metadata is not None else None
    value = said.fields.get("ollama") if said is not None else None
    # The library reads a truth value inside a larger message as its word.
    told = value is not None and (value.bool_value is False or value.string_value == "false")
    return told and not cluster.name.startswith("ollama")
