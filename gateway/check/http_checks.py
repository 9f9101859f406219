"""Checks over HTTP: the words that Envoy adds for policy, and where each word of policy's answer goes.

Over gRPC both are fixed by the protocol. Over HTTP they are lists in this file, and a list too short loses an audit
row's key, one too long tells clients, or Ollama, what was meant for the gateway's own parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy_data_plane.envoy.extensions.access_loggers.filters.cel.v3 import ExpressionFilter
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz

from gateway.check.matching import text_matches
from gateway.check.site import EDGE, Finding, Rule, Site
from policy.edge.http_codec import CLIENT, LENGTH, METADATA, STAND_INS, STARTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import AuthorizationResponse, HttpService
    from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpConnectionManager
    from envoy_data_plane.envoy.type.matcher.v3 import ListStringMatcher

MARKS = Rule(
    "check-marks",
    "policy would judge another request than the client's, or refuse all",
    "take http_service, allowed_headers and disallowed_headers as the shipped envoy.yaml has them",
)
WORDS = Rule(
    "check-answers",
    "metadata would be lost, or told to clients or to Ollama",
    "take authorization_response as the shipped envoy.yaml has it",
)
STANDING = Rule(
    "check-stand-ins",
    "clients would get a status that exists nowhere",
    "take the mappers for ext_authz_denied as the shipped envoy.yaml has them, before the others",
)
_MARKS = {
    STARTED: "%START_TIME(%s%6f)%",
    CLIENT: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    LENGTH: "%REQ(content-length)%",
}


def check(site: Site) -> Iterator[Finding]:
    for manager in site.managers():
        for link in site.links(manager):
            if isinstance(link.settings, ExtAuthz) and link.settings.http_service is not None:
                yield from _asked(site, link.settings, link.settings.http_service)
                yield from _answered(site, link.settings.http_service)
                yield from _stand_ins(site, manager)


def calls(service: HttpService | None) -> bool:
    """Whether it is policy that is asked."""
    return service is not None and service.server_uri is not None and service.server_uri.cluster == EDGE


def _asked(site: Site, authz: ExtAuthz, service: HttpService) -> Iterator[Finding]:
    for name in ("path_prefix", "path_override"):
        if getattr(service, name):
            yield site.finding(MARKS, f"http_service has {name}", service, name)
    request = service.authorization_request
    added = [(one.key.lower(), one.value) for one in request.headers_to_add] if request is not None else []
    if sorted(added) != sorted(_MARKS.items()):
        yield site.finding(MARKS, f"headers_to_add are not {', '.join(_MARKS)}", request or service, "headers_to_add")
    if request is not None and request.allowed_headers is not None:
        yield site.finding(MARKS, "authorization_request has allowed_headers", request, "allowed_headers")
    if not _names(authz.allowed_headers, "x-any-header"):
        yield site.finding(MARKS, "policy is not given all headers", authz, "allowed_headers")
    kept = authz.disallowed_headers.patterns if authz.disallowed_headers is not None else []
    if [(one.prefix, one.ignore_case) for one in kept] != [("x-paddock-", False)]:
        what = "disallowed_headers are not those that begin with x-paddock-"
        yield site.finding(MARKS, what, authz, "disallowed_headers")


def _answered(site: Site, service: HttpService) -> Iterator[Finding]:
    answer = service.authorization_response
    if answer is None:
        yield site.finding(WORDS, "there is no authorization_response", service)
        return
    missing = [name for name in METADATA if not _names(answer.dynamic_metadata_from_headers, name)]
    if missing:
        what = f"{', '.join(missing)} become no metadata"
        yield site.finding(WORDS, what, answer, "dynamic_metadata_from_headers")
    for name in ("allowed_upstream_headers", "allowed_upstream_headers_to_append"):
        if getattr(answer, name) is not None:
            yield site.finding(WORDS, f"{name} sends policy's words to upstreams", answer, name)
    yield from _to_clients(site, answer)


def _to_clients(site: Site, answer: AuthorizationResponse) -> Iterator[Finding]:
    for name in ("allowed_client_headers", "allowed_client_headers_on_success"):
        told: ListStringMatcher | None = getattr(answer, name)
        if told is None:
            yield site.finding(WORDS, f"there is no {name}", answer)
            continue
        leaked = [word for word in METADATA if _names(told, word)]
        if leaked:
            yield site.finding(WORDS, f"{name} tells clients {', '.join(leaked)}", answer, name)


def _stand_ins(site: Site, manager: HttpConnectionManager) -> Iterator[Finding]:
    mappers = manager.local_reply_config.mappers if manager.local_reply_config is not None else []
    found: dict[str, int | None] = {}
    for mapper in mappers:
        extension = mapper.filter.extension_filter if mapper.filter is not None else None
        settings = site.unpacked(extension.typed_config) if extension is not None else None
        if isinstance(settings, ExpressionFilter):
            found.setdefault(settings.expression, mapper.status_code)
    for stand_in, status in {other: own for own, other in STAND_INS.items()}.items():
        wanted = f"response.code_details == 'ext_authz_denied' && response.code == {stand_in}"
        if found.get(wanted) != status:
            yield site.finding(STANDING, f"{stand_in} does not become {status}", manager, "local_reply_config")


def _names(patterns: ListStringMatcher | None, name: str) -> bool:
    """Whether one of the patterns takes this name; one that cannot be told does."""
    return patterns is not None and any(text_matches(one, name) is not False for one in patterns.patterns)
