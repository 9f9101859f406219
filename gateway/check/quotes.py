"""The client's secrets are written nowhere: not into a log, not into a header of another name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.check.routes import SECRETS
from gateway.check.site import Finding, Rule, Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    import betterproto2
    from envoy_data_plane.envoy.config.core.v3 import HeaderValueOption

QUOTED = Rule(
    "secret-quoted",
    "whoever reads it could use the gateway as that client",
    "remove it from the format; the key's clear prefix is %DYNAMIC_METADATA(envoy.filters.http.ext_authz:key_prefix)%",
)
# In any of the forms in which a format asks for a header: %REQ(…)%, an operand of %COALESCE(…)%, %CEL(…)%.
_SECRET = re.compile(rf"%[A-Z_]+\([^%]*(?<![\w-])({'|'.join(SECRETS)})(?![\w-])[^%]*%", re.IGNORECASE)


def check(site: Site) -> Iterator[Finding]:
    for manager in site.managers():
        for log in manager.access_log:
            settings = site.unpacked(log.typed_config)
            found = _SECRET.search(repr(settings)) if settings is not None else None
            if found:
                yield site.finding(QUOTED, f"{log.name} writes the client's {found[1].lower()}", log)
    for path in site.routes():
        action = path.route.route
        weighted = action.weighted_clusters.clusters if action is not None and action.weighted_clusters else []
        for level in (path.route, path.host, path.table, *weighted):
            for name in ("request_headers_to_add", "response_headers_to_add"):
                yield from _copied(site, level, name, getattr(level, name))


def _copied(site: Site, level: betterproto2.Message, name: str, added: list[HeaderValueOption]) -> Iterator[Finding]:
    for number, one in enumerate(added):
        found = _SECRET.search(one.header.value) if one.header is not None else None
        if found and one.header is not None:
            what = f"the header {one.header.key} carries the client's {found[1].lower()}"
            yield site.finding(QUOTED, what, level, name, number)
