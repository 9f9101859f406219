"""Where Envoy sends its spans: the option `tracing` of the shipped file, with the collector's address in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gateway.envoy_upstreams import CERTIFICATES

if TYPE_CHECKING:
    from collections.abc import Sequence

Node = dict[str, Any]  # a YAML mapping: its shape is Envoy's to check, not mypy's

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"


def send_to(url: str, manager: Node, clusters: Sequence[Node]) -> None:
    """`url` is that of the collector's traces (`policy.rules.settings.otlp_url`)."""
    manager["tracing"]["provider"]["typed_config"]["http_service"]["http_uri"]["uri"] = url
    cluster = next(cluster for cluster in clusters if cluster["name"] == "otlp")
    parts = urlsplit(url)
    address = {"socket_address": {"address": parts.hostname, "port_value": parts.port}}
    endpoint = {"hostname": parts.hostname, "address": address}
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [{"endpoint": endpoint}]}]
    if parts.scheme == "https":
        common = {"validation_context": {"trusted_ca": {"filename": CERTIFICATES}}}
        context = {"@type": _TLS, "auto_host_sni": True, "auto_sni_san_validation": True, "common_tls_context": common}
        cluster["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}
