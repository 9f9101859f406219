"""The edge: who may reach what, how a request may be written, and that every request is on record."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from envoy_data_plane.envoy.config.core.v3 import HttpProtocolOptionsHeadersWithUnderscoresAction
from envoy_data_plane.envoy.extensions.access_loggers.grpc.v3 import HttpGrpcAccessLogConfig
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerPathWithEscapedSlashesAction,
)
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation.v3 import HeaderMutation

from gateway.check.routes import UPGRADE
from gateway.check.site import POLICY, Finding, Rule, Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envoy_data_plane.envoy.config.core.v3 import Address, ConfigSource

ADMIN = Rule(
    "admin-loopback", "whoever reaches it can stop Envoy and read its settings", "listen on 127.0.0.1 or a pipe"
)
ELSEWHERE = Rule(
    "out-of-sight",
    "what comes from elsewhere at run time cannot be proven",
    "write it into this file",
)
BYPASS = Rule(
    "not-http",
    "it passes bytes on past every HTTP filter",
    "remove it: a listener of the gateway speaks HTTP through http_connection_manager",
)
PATHS = Rule(
    "path-hygiene",
    "a path could be read in one way here and in another by Ollama",
    "set normalize_path: true, merge_slashes: true and path_with_escaped_slashes_action: REJECT_REQUEST",
)
HEADERS = Rule(
    "header-hygiene",
    "a client could write the gateway's own words",
    "remove x-paddock-* and x-envoy-* in early_header_mutation_extensions, and reject names with underscores",
)
IDENTITY = Rule(
    "client-address",
    "a client could choose the address it is counted and logged under",
    "set use_remote_address: true and an internal_address_config that names its ranges",
)
REQUEST_ID = Rule(
    "request-id",
    "a request could not be found in the audit log, or be found under another's id",
    "set generate_request_id and always_set_request_id_in_response: true, remove the client's x-request-id",
)
RECORD = Rule(
    "access-log",
    "the audit log would miss what Envoy answers by itself, and aborted requests",
    "log over gRPC to the cluster policy, without a filter",
)
_BESIDE_HTTP = (  # network filters that only refuse
    "envoy.extensions.filters.network.rbac.v3.RBAC",
    "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
    "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit",
)


def check(site: Site) -> Iterator[Finding]:
    yield from _admin(site)
    yield from _dynamic(site)
    yield from _network_filters(site)
    for manager in site.managers():
        yield from _paths(site, manager)
        yield from _headers(site, manager)
        yield from _identity(site, manager)
        yield from _request_id(site, manager)
        yield from _record(site, manager)
        if any(one.enabled is not False for one in manager.upgrade_configs):
            yield site.finding(UPGRADE, "the listener takes upgrades", manager, "upgrade_configs")
        if manager.http2_protocol_options is not None and manager.http2_protocol_options.allow_connect:
            yield site.finding(UPGRADE, "HTTP/2 takes CONNECT", manager.http2_protocol_options, "allow_connect")


def _admin(site: Site) -> Iterator[Finding]:
    admin = site.bootstrap.admin
    if admin is not None and admin.address is not None and not _private(admin.address):
        address = admin.address.socket_address
        where = address.address if address else "an address of another kind"
        yield site.finding(ADMIN, f"the admin page is on {where}", admin, "address")


def _private(address: Address) -> bool:
    if address.pipe is not None:
        return True
    try:
        return address.socket_address is not None and ipaddress.ip_address(address.socket_address.address).is_loopback
    except ValueError:
        return False


def _dynamic(site: Site) -> Iterator[Finding]:
    dynamic = site.bootstrap.dynamic_resources
    for name in ("lds_config", "lds_resources_locator", "ads_config"):
        if dynamic is not None and getattr(dynamic, name):
            yield site.finding(ELSEWHERE, f"listeners come by {name}", dynamic, name)
    clusters = dynamic.cds_config if dynamic is not None else None
    if dynamic is not None and (dynamic.cds_resources_locator or (clusters is not None and not _from_file(clusters))):
        yield site.finding(ELSEWHERE, "clusters come over the network", dynamic, "cds_config")
    static = site.bootstrap.static_resources
    if static is None or not static.listeners:
        yield site.finding(ELSEWHERE, "there is no listener", static or site.bootstrap)
    for manager in site.managers():
        for name in ("rds", "scoped_routes"):
            if getattr(manager, name) is not None:
                yield site.finding(ELSEWHERE, f"routes come by {name}", manager, name)
        if manager.route_config is not None and manager.route_config.vhds is not None:
            yield site.finding(ELSEWHERE, "virtual hosts come by vhds", manager.route_config, "vhds")
        for host in manager.route_config.virtual_hosts if manager.route_config else ():
            if host.matcher is not None:
                yield site.finding(ELSEWHERE, "a matching tree is not understood here", host, "matcher")
        for one in manager.http_filters:
            if one.config_discovery is not None:
                yield site.finding(ELSEWHERE, f"{one.name} comes by config_discovery", one, "config_discovery")


def _from_file(source: ConfigSource) -> bool:
    return source.path_config_source is not None or bool(source.path)


def _network_filters(site: Site) -> Iterator[Finding]:
    for chain in site.chains():
        for one in chain.filters:
            url = one.typed_config.type_url.rpartition("/")[2] if one.typed_config else ""
            if not isinstance(site.unpacked(one.typed_config), HttpConnectionManager) and url not in _BESIDE_HTTP:
                yield site.finding(BYPASS, f"{one.name} stands in a listener", one)


def _paths(site: Site, manager: HttpConnectionManager) -> Iterator[Finding]:
    for name in ("normalize_path", "merge_slashes"):
        if not getattr(manager, name):
            yield site.finding(PATHS, f"{name} is not true", manager, name)
    wanted = HttpConnectionManagerPathWithEscapedSlashesAction.REJECT_REQUEST
    if manager.path_with_escaped_slashes_action is not wanted:
        name = "path_with_escaped_slashes_action"
        yield site.finding(PATHS, f"{name} is not REJECT_REQUEST", manager, name)


def _headers(site: Site, manager: HttpConnectionManager) -> Iterator[Finding]:
    options = manager.common_http_protocol_options
    wanted = HttpProtocolOptionsHeadersWithUnderscoresAction.REJECT_REQUEST
    if options is None or options.headers_with_underscores_action is not wanted:
        place = options or manager
        yield site.finding(HEADERS, "names with underscores are not rejected", place, "headers_with_underscores_action")
    prefixes, _ = _removed_early(site, manager)
    for prefix in ("x-paddock-", "x-envoy-"):
        if not any(prefix.startswith(one) for one in prefixes):
            yield site.finding(HEADERS, f"a client's {prefix}* is kept", manager, "early_header_mutation_extensions")


def _removed_early(site: Site, manager: HttpConnectionManager) -> tuple[set[str], set[str]]:
    """Prefixes and names of headers that a client cannot set."""
    prefixes, names = set(), set()
    for extension in manager.early_header_mutation_extensions:
        settings = site.unpacked(extension.typed_config)
        for mutation in settings.mutations if isinstance(settings, HeaderMutation) else ():
            if mutation.remove:
                names.add(mutation.remove.lower())
            matcher = mutation.remove_on_match.key_matcher if mutation.remove_on_match else None
            if matcher is not None and matcher.prefix:  # Envoy compares it with names in small letters, as it stands
                prefixes.add(matcher.prefix.lower() if matcher.ignore_case else matcher.prefix)
    return prefixes, names


def _identity(site: Site, manager: HttpConnectionManager) -> Iterator[Finding]:
    if not manager.use_remote_address:
        yield site.finding(IDENTITY, "use_remote_address is not true", manager, "use_remote_address")
    if manager.internal_address_config is None or not manager.internal_address_config.cidr_ranges:
        what = "private addresses count as internal"
        yield site.finding(IDENTITY, what, manager, "internal_address_config")
    if manager.original_ip_detection_extensions:
        what = "another way to find the client's address stands first"
        yield site.finding(IDENTITY, what, manager, "original_ip_detection_extensions")


def _request_id(site: Site, manager: HttpConnectionManager) -> Iterator[Finding]:
    if manager.generate_request_id is False:
        yield site.finding(REQUEST_ID, "no request id is made", manager, "generate_request_id")
    if manager.preserve_external_request_id:
        yield site.finding(REQUEST_ID, "the client's request id is kept", manager, "preserve_external_request_id")
    if not manager.always_set_request_id_in_response:
        what = "answers carry no request id"
        yield site.finding(REQUEST_ID, what, manager, "always_set_request_id_in_response")
    if "x-request-id" not in _removed_early(site, manager)[1]:
        what = "the client's x-request-id is not removed"
        yield site.finding(REQUEST_ID, what, manager, "early_header_mutation_extensions")


def _record(site: Site, manager: HttpConnectionManager) -> Iterator[Finding]:
    for log in manager.access_log:
        settings = site.unpacked(log.typed_config)
        if not isinstance(settings, HttpGrpcAccessLogConfig) or settings.common_config is None:
            continue
        service = settings.common_config.grpc_service
        if service is None or service.envoy_grpc is None or service.envoy_grpc.cluster_name != POLICY:
            continue
        if log.filter is not None:
            yield site.finding(RECORD, "the access log to policy leaves requests out", log, "filter")
        return
    yield site.finding(RECORD, "no access log goes to policy", manager, "access_log")
