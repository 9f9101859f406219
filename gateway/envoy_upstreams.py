"""The `ollama` cluster for a list of base URLs: `http` and `https`, names and addresses, mixed as a site has them.

Policy chooses the host by `ip:port`, so every host must be known to Envoy by its resolved address. Names are therefore
resolved by Envoy (STRICT_DNS: each address behind a name is a host of its own) and by policy alike.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_PORTS = {"http": 80, "https": 443}

Node = dict[str, Any]  # a YAML mapping: its shape is Envoy's to check, not mypy's
_SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105  # a type, not a secret
KEY_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def options_for(upstreams: Iterable[str], key: str) -> list[str]:
    """The options of clusters.yaml that these base URLs and this key need."""
    https = any(urlsplit(url).scheme == "https" for url in upstreams)
    return ["https"] * https + ["key"] * bool(key)


def key_secret(key: str) -> Node:
    """The file from which Envoy takes the upstreams' key."""
    secret = {"@type": _SECRET, "name": "upstream", "generic_secret": {"secret": {"inline_string": f"Bearer {key}"}}}
    return {"resources": [secret]}


def key_from(path: Path, cluster: Node) -> None:
    """Let a cluster that has the option `key` take it from this file."""
    for one in cluster.get("typed_extension_protocol_options", {}).get(KEY_OPTIONS, {}).get("http_filters", ()):
        credential = one["typed_config"].get("credential")
        if credential is not None:
            source = credential["typed_config"]["credential"]["sds_config"]
            source["path_config_source"]["path"] = str(path)


def ollama_cluster(shipped: Node, upstreams: Sequence[str], authority: Path | None = None) -> Node:
    """The shipped cluster with these hosts instead of its own. Where one is https:// it must have the option `https`;
    `authority` is the CA that is believed then, None the system's."""
    if not upstreams:
        raise ValueError("no upstream: at least one Ollama base URL is needed")
    cluster = copy.deepcopy(shipped)
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [_endpoint(url) for url in upstreams]}]
    if not any(urlsplit(url).scheme == "https" for url in upstreams):
        cluster.pop("transport_socket_matches", None)
    for match in cluster.get("transport_socket_matches", ()):
        common = match["transport_socket"]["typed_config"].get("common_tls_context")
        if common is not None:
            common["validation_context"]["trusted_ca"]["filename"] = str(authority or CERTIFICATES)
    return cluster


def _endpoint(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"not a base URL of an Ollama (http://host:port): {url}")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        raise ValueError(f"an Ollama is given by scheme, host and port alone: {url}")
    port = parts.port or _PORTS[parts.scheme]
    endpoint: dict[str, Any] = {
        "endpoint": {
            "hostname": parts.hostname,
            "address": {"socket_address": {"address": parts.hostname, "port_value": port}},
        }
    }
    if parts.scheme == "https":
        endpoint["metadata"] = {"filter_metadata": {"envoy.transport_socket_match": {"scheme": "https"}}}
    return endpoint
