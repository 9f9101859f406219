"""What an instance's settings change for envelopes in the shipped configuration: their size, and the tiers' own hosts.

Processor chooses the tier's hosts by a header and has Envoy look for the route anew, with the path that Ollama knows
by then. So a tier with hosts of its own has a cluster of its own, and its envelopes reach no other host, not even when
all of that tier are down.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from gateway.envoy_upstreams import ollama_cluster

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ROUTE = "envelope"
SIZE = "envoy.filters.http.body_size_limit.envelope"
Node = dict[str, Any]  # a YAML mapping: its shape is Envoy's to check, not mypy's


def limit_envelopes(manager: Node, limit: int | None, *, plain: int, slack: int) -> None:
    """The two places that must agree with PADDOCK_MAX_ENVELOPE_BYTES (None: as shipped). No plain body, `plain` bytes
    at most, is refused for being larger than an envelope."""
    for http_filter in manager["http_filters"]:
        if http_filter["name"] == SIZE:
            settings = http_filter["typed_config"]
            limit = max(limit or settings["max_request_bytes"], plain)
            settings["max_request_bytes"] = limit
    for host in manager["route_config"]["virtual_hosts"]:
        for route in host["routes"]:
            if route["name"] == ROUTE and limit is not None:
                route["request_body_buffer_limit"] = limit + slack


def add_tiers(manager: Node, hosts: Node, tiers: Mapping[str, Sequence[str]], authority: Path | None = None) -> None:
    """A route and a cluster for each tier that has base URLs of its own."""
    ollama = next(cluster for cluster in hosts["resources"] if cluster["name"] == "ollama")
    for tier, urls in tiers.items():
        name = f"ollama-{tier}"
        cluster = ollama_cluster(ollama, urls, authority)
        cluster["name"] = cluster["load_assignment"]["cluster_name"] = name
        hosts["resources"].append(cluster)
        for host in manager["route_config"]["virtual_hosts"]:
            names = [route["name"] for route in host["routes"]]
            if ROUTE in names:
                route = copy.deepcopy(host["routes"][names.index(ROUTE)])
                route["name"] = f"{ROUTE}-{tier}"
                route["match"]["path"] = "/v1/chat/completions"
                route["match"]["headers"].append({"name": "x-paddock-tier", "string_match": {"exact": tier}})
                route["route"]["cluster"] = name
                host["routes"].insert(names.index("v1-chat"), route)
