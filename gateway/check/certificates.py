"""TLS to whatever Envoy calls: a certificate of a trusted authority, and for the name that was meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContextTrustChainVerification,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import HttpProtocolOptions

from gateway.check.site import Finding, Rule, Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envoy_data_plane.envoy.config.cluster.v3 import Cluster
    from envoy_data_plane.envoy.config.core.v3 import TransportSocket
    from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import CertificateValidationContext

VERIFIED = Rule(
    "tls-unverified",
    "whoever answers at that address could read prompts, or judge requests",
    "set a validation_context with trusted_ca, and the name to expect",
)
_ANY = CertificateValidationContextTrustChainVerification.ACCEPT_UNTRUSTED


def check(site: Site) -> Iterator[Finding]:
    for cluster in site.every_cluster():
        sockets: list[TransportSocket | None] = [
            cluster.transport_socket, *(one.transport_socket for one in cluster.transport_socket_matches)
        ]  # fmt: skip
        for socket in sockets:
            tls = site.unpacked(socket.typed_config) if socket is not None else None
            if isinstance(tls, UpstreamTlsContext):
                for what in _unproven(site, cluster, tls):
                    yield site.finding(VERIFIED, what, tls)


def _unproven(site: Site, cluster: Cluster, tls: UpstreamTlsContext) -> Iterator[str]:
    common = tls.common_tls_context
    if common is None:
        yield f"TLS to {cluster.name} takes any certificate"
        return
    written = common.validation_context
    secret = common.validation_context_sds_secret_config is not None  # authorities and names come from its file
    if common.combined_validation_context is not None:
        written = common.combined_validation_context.default_validation_context
        secret = common.combined_validation_context.validation_context_sds_secret_config is not None
    elsewhere = common.custom_handshaker is not None
    if written is None and not secret and not elsewhere:
        yield f"TLS to {cluster.name} takes any certificate"
    elif written is not None and written.trust_chain_verification is _ANY:
        yield f"TLS to {cluster.name} takes certificates that nobody trusted has signed"
    elif written is not None and not secret and not _trusts(written):
        yield f"TLS to {cluster.name} takes certificates of any authority"
    elif written is not None and not secret and not _names(site, cluster, tls, written):
        yield f"TLS to {cluster.name} takes a certificate for any name"


def _trusts(written: CertificateValidationContext) -> bool:
    return bool(
        written.trusted_ca
        or written.ca_certificate_provider_instance
        or written.system_root_certs
        or _pinned(written)
        or written.custom_validator_config
    )


def _pinned(written: CertificateValidationContext) -> bool:
    return bool(written.verify_certificate_spki or written.verify_certificate_hash)


def _names(site: Site, cluster: Cluster, tls: UpstreamTlsContext, written: CertificateValidationContext) -> bool:
    options = [site.unpacked(one) for one in cluster.typed_extension_protocol_options.values()]
    by_host = any(
        one.upstream_http_protocol_options is not None and one.upstream_http_protocol_options.auto_san_validation
        for one in options
        if isinstance(one, HttpProtocolOptions)
    )
    named = written.match_typed_subject_alt_names or written.match_subject_alt_names
    return bool(named or tls.auto_sni_san_validation or by_host or _pinned(written) or written.custom_validator_config)
