"""The `ollama` cluster for a list of base URLs: `http` and `https`, names and addresses, mixed as a site has them.

Policy chooses the host by `ip:port`, so every host must be known to Envoy by its resolved address. Names are therefore
resolved by Envoy (STRICT_DNS: each address behind a name is a host of its own) and by policy alike.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_RAW = "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
_HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_PORTS = {"http": 80, "https": 443}


def ollama_cluster(shipped: dict[str, Any], upstreams: Sequence[str]) -> dict[str, Any]:
    """The shipped cluster with these hosts instead of its own."""
    if not upstreams:
        raise ValueError("no upstream: at least one Ollama base URL is needed")
    cluster = copy.deepcopy(shipped)
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [_endpoint(url) for url in upstreams]}]
    if any(urlsplit(url).scheme == "https" for url in upstreams):
        # Each host says by its metadata which transport it wants; the name to ask for and to verify is its hostname.
        cluster["transport_socket_matches"] = [
            {
                "name": "https",
                "match": {"scheme": "https"},
                "transport_socket": {
                    "name": "envoy.transport_sockets.tls",
                    "typed_config": {
                        "@type": _TLS,
                        "auto_host_sni": True,
                        "auto_sni_san_validation": True,
                        "common_tls_context": {
                            "validation_context": {"trusted_ca": {"filename": CERTIFICATES}},
                        },
                    },
                },
            },
            {
                "name": "http",
                "match": {},
                "transport_socket": {"name": "envoy.transport_sockets.raw_buffer", "typed_config": {"@type": _RAW}},
            },
        ]
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
