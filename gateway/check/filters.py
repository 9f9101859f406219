"""The chain of HTTP filters: policy, then processor, then the router; each shuts the gate where it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExternalProcessor,
    ProcessingModeBodySendMode,
    ProcessingModeHeaderSendMode,
)
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router

from gateway.check import http_checks
from gateway.check.site import (
    AUTHZ_NAMESPACE,
    EDGE,
    POLICY,
    PROCESSOR,
    PROCESSOR_NAMESPACE,
    Finding,
    Link,
    Rule,
    Site,
    is_meter,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envoy_data_plane.envoy.config.core.v3 import GrpcService
    from envoy_data_plane.envoy.type.v3 import HttpStatus

ORDER = Rule(
    "filter-order",
    "a request would be metered, or reach Ollama, before policy judged it",
    "put ext_authz before ext_proc and the meter, and the router last",
)
MISSING = Rule(
    "filter-missing",
    "requests would reach Ollama without it",
    "put it back as the shipped envoy.yaml has it",
)
BETWEEN = Rule(
    "filter-between",
    "what policy judged may not be what Ollama gets",
    "put it before ext_authz (its work on answers is then done last)",
)
OPEN = Rule(
    "fail-open",
    "an outage of that service would let requests through unjudged or unmetered",
    "set failure_mode_allow: false",
)
SOMETIMES = Rule(
    "sometimes-off",
    "requests it does not see are neither judged nor metered",
    "remove that setting; turn the filter off by route, where the route answers by itself",
)
STATUS = Rule(
    "status-on-error",
    "clients would take an outage for a refusal and not try again",
    "set status_on_error: {code: ServiceUnavailable}",
)
SERVICE = Rule("service-cluster", "somebody else would decide", "name the gateway's own cluster")
PHASES = Rule(
    "processor-phases",
    "processor asks for what it must see by mode_override; without it answers pass unmetered",
    "set request_header_mode: SEND, response_header_mode: SKIP, bodies NONE, trailers SKIP, allow_mode_override: true "
    "and no allowed_override_modes",
)
METADATA = Rule(
    "metadata",
    "the grant would not reach processor, which then refuses everything",
    "forward the untyped namespace envoy.filters.http.ext_authz and receive paddock",
)
FORGED = Rule(
    "metadata-forged",
    "what stands there counts as policy's word, or as what an answer used",
    "keep every other filter out of that namespace",
)
HARMLESS = (
    "BodySizeLimit",  # refuses and changes nothing
    "CredentialInjector",  # the upstream's own key, after ours is gone
)
_PROGRAMS = ("Lua", "Wasm", "Config", "DynamicModuleFilter", "ExtensionWithMatcher", "Composite")


def check(site: Site) -> Iterator[Finding]:
    for manager in site.managers():
        links = site.links(manager)
        yield from _order(site, links)
        yield from _forged(site, links)
        yield from _unread(site, links)
    yield from _authz(site)
    yield from _processor(site)


def _order(site: Site, links: Sequence[Link]) -> Iterator[Finding]:
    if not links:
        return
    places: dict[type, list[int]] = {ExtAuthz: [], ExternalProcessor: [], Router: []}
    for number, link in enumerate(links):
        if type(link.settings) in places:
            places[type(link.settings)].append(number)
    for kind, name in ((ExtAuthz, "ext_authz"), (ExternalProcessor, "ext_proc")):
        if not places[kind]:
            yield site.finding(MISSING, f"there is no {name} among the HTTP filters", links[0].http_filter)
    authz, proc = places[ExtAuthz], places[ExternalProcessor]
    if not authz or not proc:
        return
    if max(authz) > min(proc):
        yield site.finding(ORDER, "ext_proc stands before ext_authz", links[min(proc)].http_filter)
    for link in links[: max(authz)]:
        if is_meter(link.settings):
            yield site.finding(ORDER, "the meter stands before ext_authz", link.http_filter)
    for number in range(min(authz) + 1, len(links)):
        link = links[number]
        if isinstance(link.settings, (ExtAuthz, ExternalProcessor, Router)) or is_meter(link.settings):
            continue
        if type(link.settings).__name__ not in HARMLESS:
            yield site.finding(BETWEEN, f"{link.http_filter.name} stands after ext_authz", link.http_filter)
    for link in links:
        if isinstance(link.settings, Router) and link.settings.upstream_http_filters:
            yield site.finding(BETWEEN, "the router has filters of its own", link.settings, "upstream_http_filters")


def _unread(site: Site, links: Sequence[Link]) -> Iterator[Finding]:
    """Scripts and programs may stand before policy; what they do is not in the file."""
    for link in links:
        if type(link.settings).__name__ in _PROGRAMS and not is_meter(link.settings):
            yield site.note(BETWEEN, f"what {link.http_filter.name} does is not read here", link.http_filter)


def _forged(site: Site, links: Sequence[Link]) -> Iterator[Finding]:
    for link in links:
        if link.settings is None or isinstance(link.settings, (ExtAuthz, ExternalProcessor, Router)):
            continue
        if AUTHZ_NAMESPACE in repr(link.settings):
            yield site.finding(FORGED, f"{link.http_filter.name} names policy's namespace", link.http_filter)
        if repr(PROCESSOR_NAMESPACE) in repr(link.settings):
            what = f"{link.http_filter.name} names the namespace of what was used and settled"
            yield site.finding(FORGED, what, link.http_filter)


def _authz(site: Site) -> Iterator[Finding]:
    for authz in site.each(ExtAuthz):
        for name in ("failure_mode_allow", "failure_mode_allow_header_add"):
            if getattr(authz, name):
                yield site.finding(OPEN, f"ext_authz has {name}: true", authz, name)
        for name in ("filter_enabled", "filter_enabled_metadata", "shadow_mode"):
            if getattr(authz, name):
                yield site.finding(SOMETIMES, f"ext_authz has {name}", authz, name)
        yield from _status(site, authz, "ext_authz", authz.status_on_error)
        if authz.http_service is not None:
            if not http_checks.calls(authz.http_service):
                yield site.finding(SERVICE, f"ext_authz does not ask the cluster {EDGE}", authz, "http_service")
        elif not _calls(authz.grpc_service, POLICY):
            yield site.finding(SERVICE, f"ext_authz does not ask the cluster {POLICY}", authz, "grpc_service")


def _processor(site: Site) -> Iterator[Finding]:
    for proc in site.each(ExternalProcessor):
        for name in ("failure_mode_allow", "observability_mode"):
            if getattr(proc, name):
                yield site.finding(OPEN, f"ext_proc has {name}: true", proc, name)
        yield from _status(site, proc, "ext_proc", proc.status_on_error)
        if proc.http_service is not None or not _calls(proc.grpc_service, PROCESSOR):
            yield site.finding(SERVICE, f"ext_proc does not ask the cluster {PROCESSOR}", proc, "grpc_service")
        yield from _phases(site, proc)
        yield from _metadata(site, proc)


def _phases(site: Site, proc: ExternalProcessor) -> Iterator[Finding]:
    mode, headers, bodies = proc.processing_mode, ProcessingModeHeaderSendMode, ProcessingModeBodySendMode
    if not proc.allow_mode_override:
        yield site.finding(PHASES, "ext_proc lacks allow_mode_override: true", proc, "allow_mode_override")
    if proc.allowed_override_modes:
        yield site.finding(PHASES, "ext_proc has allowed_override_modes", proc, "allowed_override_modes")
    if proc.disable_immediate_response:
        yield site.finding(PHASES, "processor may not refuse", proc, "disable_immediate_response")
    if mode is None:
        yield site.finding(PHASES, "ext_proc has no processing_mode", proc)
        return
    if mode.request_header_mode is headers.SKIP:
        yield site.finding(PHASES, "processor is not shown request headers", mode, "request_header_mode")
    if mode.response_header_mode is not headers.SKIP:
        yield site.finding(PHASES, "processor is shown answers that policy refused", mode, "response_header_mode")
    for name in ("request_body_mode", "response_body_mode"):
        if getattr(mode, name) is not bodies.NONE:
            yield site.finding(PHASES, f"{name} is not NONE", mode, name)


def _metadata(site: Site, proc: ExternalProcessor) -> Iterator[Finding]:
    options = proc.metadata_options
    forwarded = options.forwarding_namespaces.untyped if options and options.forwarding_namespaces else []
    received = options.receiving_namespaces.untyped if options and options.receiving_namespaces else []
    if AUTHZ_NAMESPACE not in forwarded:
        yield site.finding(
            METADATA, "ext_proc is not given the grant", proc, "metadata_options", "forwarding_namespaces"
        )
    if "paddock" not in received:
        yield site.finding(
            METADATA, "the access log is not told what is settled", proc, "metadata_options", "receiving_namespaces"
        )
    if AUTHZ_NAMESPACE in received:
        yield site.finding(
            FORGED, "ext_proc may write policy's namespace", proc, "metadata_options", "receiving_namespaces"
        )


def _status(
    site: Site, settings: ExtAuthz | ExternalProcessor, name: str, status: HttpStatus | None
) -> Iterator[Finding]:
    if status is None or int(status.code) != 503:
        yield site.finding(STATUS, f"{name} does not answer 503 when its service is down", settings, "status_on_error")


def _calls(service: GrpcService | None, cluster: str) -> bool:
    return service is not None and service.envoy_grpc is not None and service.envoy_grpc.cluster_name == cluster
