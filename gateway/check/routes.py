"""The routes: what is blocked for ever, and that nothing reaches Ollama past policy and processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy_data_plane.envoy.config.rbac.v3 import RbacAction
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz, ExtAuthzPerRoute
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExternalProcessor,
    ExtProcPerRoute,
    ProcessingModeHeaderSendMode,
)
from envoy_data_plane.envoy.extensions.filters.http.rbac.v3 import Rbac, RbacPerRoute

from gateway.check.matching import matches
from gateway.check.site import OWN, PAGES, Finding, Path, Rule, Site, destinations

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envoy_data_plane.envoy.config.rbac.v3 import Principal
    from envoy_data_plane.envoy.config.rbac.v3 import Rbac as RbacRules
    from envoy_data_plane.envoy.config.route.v3 import Route, RouteAction, VirtualHost

BLOCKED = Rule(
    "blocked-paths",
    "it changes the Ollama machine or tells about it",
    "let the first route of each virtual host answer these paths with 403, whatever the method and the letter case",
)
BLOCKED_FIRST = Rule(
    "blocked-first",
    "a route looked at earlier can take a mutating path with the next edit",
    "put the blocking route before every other",
)
CATCH_ALL = Rule(
    "catch-all",
    "where no route matches, Envoy answers past ext_authz and processor is still asked",
    "end each virtual host with {match: {prefix: /}, direct_response: {status: 403}}",
)
UNGUARDED = Rule(
    "unguarded-route",
    "anybody could use Ollama on it, unmetered",
    "remove what turns the filter off for this route, or turn the meter on where ext_proc is off; where it leads to "
    "something else than Ollama, say so in that cluster: metadata: {filter_metadata: {paddock: {ollama: false}}}",
)
OVERRIDDEN = Rule(
    "route-override",
    "on this route the filter would not do what it does elsewhere",
    "remove that part of typed_per_filter_config",
)
UNNAMED = Rule(
    "unnamed-cluster",
    "where the request goes is decided outside this file",
    "name the cluster in the route",
)
INSIDE = Rule(
    "route-to-service",
    "clients could talk to the gateway's services in their own protocol",
    "remove the route: only policy_http answers clients",
)
REWRITTEN = Rule(
    "rewritten-request",
    "policy judged one request and Ollama would get another, or get it twice",
    "remove it from the route",
)
CREDENTIALS = Rule(
    "credentials",
    "the client's secrets would be known to every Ollama machine",
    "list them in request_headers_to_remove, as the shipped routes do",
)
UPGRADE = Rule(
    "upgrade",
    "inside a tunnel or a WebSocket nothing is judged",
    "remove upgrade_configs; refuse CONNECT with a direct response",
)
SCRAPE = Rule(
    "metrics-public",
    "names of tenants and models would be public",
    "turn envoy.filters.http.rbac on for the route, for loopback alone",
)

_NEVER = ("pull", "push", "create", "copy", "delete", "blobs", "ps", "status", "me", "signout", "user", "experimental")
MUTATING = tuple(f"/api/{name}" for name in _NEVER)
_METHODS = ("POST", "GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS")
SECRETS = ("authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie")


def check(site: Site) -> Iterator[Finding]:
    for manager in site.managers():
        for host in manager.route_config.virtual_hosts if manager.route_config else ():
            yield from _blocked(site, host)
            yield from _ends(site, host)
    for path in site.routes():
        yield from _destination(site, path)
        yield from _tunnel(site, path.route)
        yield from _scrape(site, path)
        if site.to_upstream(path.route):
            yield from _guarded(site, path)
            yield from _same_request(site, path)
            yield from _credentials(site, path)


def _spellings(path: str) -> Iterator[str]:
    """How a path can be written so that Ollama, or a reader in between, may still take it for the same."""
    yield path
    yield f"{path}/"
    yield f"{path}/x"
    yield path.upper()
    yield path.title()
    yield f"{path}?x"


def _refuses(route: Route) -> bool:
    return route.direct_response is not None and route.direct_response.status >= 400


def _blocked(site: Site, host: VirtualHost) -> Iterator[Finding]:
    leads = next((number for number, route in enumerate(host.routes) if not _refuses(route)), len(host.routes))
    told: set[tuple[str, int]] = set()
    for name in MUTATING:
        for path in _spellings(name):
            for method in _METHODS:
                number, refused = _taker(host.routes, method, path)
                place = host.routes[number] if number < len(host.routes) else host
                if refused and number < leads:
                    continue
                rule = BLOCKED_FIRST if refused else BLOCKED
                if (rule.name, number) in told:
                    continue
                told.add((rule.name, number))
                after = host.routes[leads] if refused else place
                what = (
                    f"{method} {path} is only refused after this route"
                    if refused
                    else f"{method} {path} is not refused"
                )
                yield site.finding(rule, what, after)


def _taker(routes: Sequence[Route], method: str, path: str) -> tuple[int, bool]:
    """The route that takes the request, and whether it surely refuses. What may match counts where it lets through."""
    for number, route in enumerate(routes):
        taken = matches(route.match, method, path) if route.match else None
        if taken is True or (taken is None and not _refuses(route)):
            return number, _refuses(route)
    return len(routes), False


def _ends(site: Site, host: VirtualHost) -> Iterator[Finding]:
    last = host.routes[-1] if host.routes else None
    match = last.match if last else None
    if last is None or match is None or not _refuses(last) or match.prefix != "/" or match.headers:
        yield site.finding(CATCH_ALL, "the last route does not refuse everything else", last or host)


def _destination(site: Site, path: Path) -> Iterator[Finding]:
    action = path.route.route
    if action is None:
        return
    weighted = action.weighted_clusters.clusters if action.weighted_clusters else []
    if not destinations(path.route) or any(one.cluster_header for one in weighted):
        yield site.finding(UNNAMED, "the route names no cluster", action)
    for name in sorted((OWN - {PAGES}).intersection(destinations(path.route))):
        yield site.finding(INSIDE, f"the route leads to {name}", action)


def _tunnel(site: Site, route: Route) -> Iterator[Finding]:
    if route.route is None:
        return
    if route.match is not None and route.match.connect_matcher is not None:
        yield site.finding(UPGRADE, "CONNECT is let through", route)
    if any(one.enabled is not False for one in route.route.upgrade_configs):
        yield site.finding(UPGRADE, "the route takes upgrades", route.route, "upgrade_configs")


def _scrape(site: Site, path: Path) -> Iterator[Finding]:
    route = path.route
    if route.route is None or route.match is None or matches(route.match, "GET", "/metrics") is False:
        return
    if PAGES not in destinations(route):
        return
    for link in site.links(path.manager):
        if isinstance(link.settings, Rbac):
            said = site.per_route(path, link.http_filter)
            if isinstance(said, RbacPerRoute) and said.rbac is not None and said.rbac.rules is not None:
                if not _narrow(said.rbac.rules):
                    yield site.finding(SCRAPE, "everybody may read /metrics", said.rbac.rules)
                return
    yield site.finding(SCRAPE, "everybody may read /metrics", route)


def _narrow(rules: RbacRules) -> bool:
    """Whether the rules let through callers of some addresses alone."""
    if rules.action is not RbacAction.ALLOW:
        return False
    return all(_few(one) for policy in rules.policies.values() for one in policy.principals)


def _few(principal: Principal) -> bool:
    if principal.or_ids is not None:
        return all(_few(one) for one in principal.or_ids.ids)
    if principal.and_ids is not None:
        return any(_few(one) for one in principal.and_ids.ids)
    if principal.authenticated is not None:
        return True
    place = principal.direct_remote_ip or principal.remote_ip or principal.source_ip
    return place is not None and bool(place.prefix_len)


def _guarded(site: Site, path: Path) -> Iterator[Finding]:
    for kind, name in ((ExtAuthz, "ext_authz"), (ExternalProcessor, "ext_proc")):
        links = [link for link in site.links(path.manager) if isinstance(link.settings, kind)]
        if links and not site.serving(path, kind) and not (kind is ExternalProcessor and site.metered(path)):
            off = "neither ext_proc nor the meter on" if kind is ExternalProcessor else f"{name} off"
            yield site.finding(UNGUARDED, f"the route leads to {_where(path.route)} with {off}", path.route)
        for link in links:
            # Of several levels Envoy joins what they say: a service of the host's holds where a route names none.
            for level, said in site.all_levels(path, link.http_filter):
                for what in _overrides(said):
                    yield site.finding(
                        OVERRIDDEN, f"{name}: {what}", level, "typed_per_filter_config", link.http_filter.name
                    )
    action = path.route.route
    for one in action.weighted_clusters.clusters if action and action.weighted_clusters else ():
        if one.typed_per_filter_config:
            yield site.finding(OVERRIDDEN, f"cluster {one.name} has filter settings of its own", one)


def _overrides(said: object) -> Iterator[str]:
    """What a per-route setting changes that it must not."""
    if isinstance(said, ExtAuthzPerRoute) and said.check_settings is not None:
        settings = said.check_settings
        if settings.grpc_service is not None or settings.http_service is not None:
            yield "another service decides"
        body = settings.with_request_body
        if body is not None and (body.allow_partial_message or not body.pack_as_bytes):
            yield "policy would see a part of the body, or a text that is not quite its bytes"
    if isinstance(said, ExtProcPerRoute) and said.overrides is not None:
        overrides = said.overrides
        mode = overrides.processing_mode
        if overrides.failure_mode_allow:
            yield "failure_mode_allow: true"
        if overrides.grpc_service is not None:
            yield "another service processes"
        if overrides.metadata_options is not None:
            yield "metadata_options"
        if mode is not None and mode.request_header_mode is ProcessingModeHeaderSendMode.SKIP:
            yield "processor is not shown request headers"


def _same_request(site: Site, path: Path) -> Iterator[Finding]:
    action = path.route.route
    assert action is not None  # noqa: S101  # it leads to an upstream
    for name in _rewriting(action):
        yield site.finding(REWRITTEN, f"the route has {name}", action, name)
    for level in (path.host, path.table):
        if level.request_mirror_policies:
            yield site.finding(REWRITTEN, "requests are mirrored", level, "request_mirror_policies")


def _rewriting(action: RouteAction) -> Iterator[str]:
    for name in (
        "prefix_rewrite", "regex_rewrite", "path_rewrite_policy", "path_rewrite", "request_mirror_policies",
        "internal_redirect_policy", "max_internal_redirects",
    ):  # fmt: skip
        if getattr(action, name) and not (name == "regex_rewrite" and _session_path(action)):
            yield name


def _session_path(action: RouteAction) -> bool:
    """The one rewriting that policy knows of: a session's /openai/… is judged as the /v1/… that it becomes."""
    rewrite = action.regex_rewrite
    pattern = rewrite.pattern.regex if rewrite is not None and rewrite.pattern is not None else ""
    return rewrite is not None and pattern == "^/openai/" and rewrite.substitution == "/v1/"


def _credentials(site: Site, path: Path) -> Iterator[Finding]:
    removed = {
        name.lower() for level in (path.route, path.host, path.table) for name in level.request_headers_to_remove
    }
    kept = [name for name in SECRETS if name not in removed]
    if kept:
        yield site.finding(CREDENTIALS, f"the route passes {', '.join(kept)} on to {_where(path.route)}", path.route)


def _where(route: Route) -> str:
    return ", ".join(destinations(route)) or "a cluster that is not named"
