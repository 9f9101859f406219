"""Ollama gets each request once, and as it was judged: what a cluster adds behind the router, and what sends again.

A generation that began is work that was done: sent a second time it is done twice and charged once. So an upstream's
requests are repeated only where it is sure that none of them was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy_data_plane.envoy.extensions.upstreams.http.v3 import HttpProtocolOptions

from gateway.check.filters import BETWEEN, HARMLESS
from gateway.check.routes import REWRITTEN
from gateway.check.site import OWN, Finding, Path, Rule, Site, destinations

if TYPE_CHECKING:
    from collections.abc import Iterator

    import betterproto2
    from envoy_data_plane.envoy.config.cluster.v3 import Cluster
    from envoy_data_plane.envoy.config.route.v3 import RetryPolicy

TWICE = Rule(
    "sent-twice",
    "Ollama would do work a second time that is charged once",
    "retry_on: connect-failure,refused-stream,reset-before-request, and nothing else",
)
_UNREAD = frozenset(("connect-failure", "refused-stream", "reset-before-request", "http3-post-connect-failure"))
_AT_THE_END = (*HARMLESS, "UpstreamCodec")  # what a cluster's own filters may be; the codec has to be the last


def check(site: Site) -> Iterator[Finding]:
    reached: set[str] = set()
    for path in site.routes():
        if site.to_upstream(path.route):
            reached.update(destinations(path.route))
            yield from _on_the_way(site, path)
    for cluster in site.every_cluster():
        if cluster.name in reached - OWN:
            yield from _behind_the_router(site, cluster)


def _on_the_way(site: Site, path: Path) -> Iterator[Finding]:
    for level in (path.route.route, path.host):
        if level is None:
            continue
        yield from _again(site, level, level.retry_policy)
        for name in ("hedge_policy", "retry_policy_typed_config"):
            if getattr(level, name) is not None:
                yield site.finding(TWICE, f"requests to Ollama have a {name}", level, name)


def _behind_the_router(site: Site, cluster: Cluster) -> Iterator[Finding]:
    for packed in cluster.typed_extension_protocol_options.values():
        options = site.unpacked(packed)
        if not isinstance(options, HttpProtocolOptions):
            continue
        yield from _again(site, options, options.retry_policy)
        if options.request_mirror_policies:
            yield site.finding(REWRITTEN, "requests are mirrored", options, "request_mirror_policies")
        for one in options.http_filters:
            if type(site.unpacked(one.typed_config)).__name__ not in _AT_THE_END:
                yield site.finding(BETWEEN, f"{one.name} stands between the router and {cluster.name}", one)


def _again(site: Site, level: betterproto2.Message, policy: RetryPolicy | None) -> Iterator[Finding]:
    if policy is None:
        return
    reasons = {word.strip() for word in policy.retry_on.split(",")} - {""} - _UNREAD
    if reasons:
        what = f"requests to Ollama are sent again on {', '.join(sorted(reasons))}"
        yield site.finding(TWICE, what, level, "retry_policy", "retry_on")
