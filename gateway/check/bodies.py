"""The limits of a request body: one figure in several places, and buffers that hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz

from gateway.check.newer_types import BodySizeLimit
from gateway.check.site import Finding, Link, Path, Rule, Site

if TYPE_CHECKING:
    from collections.abc import Iterator

SLACK = 64 * 1024  # bytes that earlier filters may add: as `gateway.envoy_config` has it

STEP = Rule(
    "body-limit",
    "bodies between the two figures would be refused by one part and expected by another, or stall",
    "write the same number of bytes into body_size_limit, ext_authz and PADDOCK_MAX_REQUEST_BODY_BYTES",
)
MISSING = Rule(
    "body-limit-missing",
    "a body above the buffers stalls until the client gives up",
    "put the filter envoy.filters.http.body_size_limit back",
)
WHOLE = Rule(
    "whole-body",
    "policy would judge a part of the request, or a text that is not quite its bytes",
    "set with_request_body: {allow_partial_message: false, pack_as_bytes: true}",
)
BUFFER = Rule(
    "body-buffer",
    "a body that is allowed would not fit and stall",
    "set request_body_buffer_limit 65536 above the largest body",
)


def check(site: Site) -> Iterator[Finding]:
    limit = site.max_request_body_bytes
    for manager in site.managers():
        links = site.links(manager)
        sizes = [one.settings for one in links if isinstance(one.settings, BodySizeLimit) and not _of_envelopes(one)]
        if not sizes:
            yield site.finding(
                MISSING, "no filter limits the size of bodies", links[0].http_filter if links else manager
            )
        for size in sizes:
            if size.max_request_bytes != limit:
                what = f"body_size_limit allows {size.max_request_bytes} bytes, the services {limit}"
                yield site.finding(STEP, what, size, "max_request_bytes")
    for authz in site.each(ExtAuthz):
        body = authz.with_request_body
        if body is None:
            yield site.finding(WHOLE, "policy is not given the body", authz)
            continue
        if body.max_request_bytes != limit:
            what = f"ext_authz takes {body.max_request_bytes} bytes, the services {limit}"
            yield site.finding(STEP, what, body, "max_request_bytes")
        if body.allow_partial_message or not body.pack_as_bytes:
            yield site.finding(WHOLE, "policy is not given the whole body as bytes", authz, "with_request_body")
    for path in site.routes():
        if site.to_upstream(path.route):
            yield from _buffer(site, path, _largest(site, path, limit))


def _of_envelopes(link: Link) -> bool:
    """Whether a filter is the one that counts where the usual one is off, for bodies larger than the usual."""
    return link.http_filter.name.endswith(".envelope")


def _largest(site: Site, path: Path, limit: int) -> int:
    """The largest body that the filters let pass on a route; `limit` on a usual one."""
    found = limit
    for link in site.links(path.manager):
        if isinstance(link.settings, BodySizeLimit) and _of_envelopes(link):
            found = max(found, link.settings.max_request_bytes or 0)
        elif isinstance(link.settings, BodySizeLimit):
            if not getattr(site.per_route(path, link.http_filter), "disabled", False):
                return limit
    return found


def _buffer(site: Site, path: Path, limit: int) -> Iterator[Finding]:
    for level in (path.route, path.host):
        held = level.request_body_buffer_limit
        if held is not None:
            if held < limit + SLACK:
                what = f"the buffer holds {held} bytes, a body may have {limit}"
                yield site.finding(BUFFER, what, level, "request_body_buffer_limit")
            return
    yield site.finding(BUFFER, "the size of the buffer is left to a default", path.host)
