"""Traces: where they are on, no span quotes a client. By itself Envoy writes target and User-Agent into each."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.check.site import Finding, Rule, Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
        HttpConnectionManagerTracing,
    )

SPANS = Rule(
    "spans-quote",
    "what a client wrote, a key in its target perhaps, would be with the collector",
    "take the option `tracing` of the shipped file: literals for http.url and user_agent, and tags of no header",
)
_QUOTED = ("http.url", "user_agent")
_HEADERS = re.compile(r"%(REQ|RESP|TRAILER|REQUEST_HEADER|PATH|QUERY_PARAM)", re.IGNORECASE)


def check(site: Site) -> Iterator[Finding]:
    for manager in site.managers():
        if manager.tracing is not None:
            yield from _tags(site, manager.tracing)
            for words in (manager.tracing.operation, manager.tracing.upstream_operation):
                if _HEADERS.search(words):
                    yield site.finding(SPANS, f"spans are named after {words}", manager.tracing)


def _tags(site: Site, tracing: HttpConnectionManagerTracing) -> Iterator[Finding]:
    literal = {tag.tag for tag in tracing.custom_tags if tag.literal is not None}
    for name in _QUOTED:
        if name not in literal:
            yield site.finding(SPANS, f"spans have the client's {name}", tracing, "custom_tags")
    for tag in tracing.custom_tags:
        if tag.request_header is not None:
            yield site.finding(SPANS, f"{tag.tag} is the header {tag.request_header.name}", tag)
        elif _HEADERS.search(tag.value or ""):
            yield site.finding(SPANS, f"{tag.tag} is {tag.value}", tag)
