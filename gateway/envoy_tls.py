"""TLS in Envoy's configuration: certificates come from files named in a secret file (file SDS), so that new ones are
used without a restart as soon as they are moved into place.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.failure import Failure

if TYPE_CHECKING:
    from pathlib import Path

Node = dict[str, Any]  # a YAML mapping: its shape is Envoy's to check, not mypy's

_SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105  # a type, not a secret
_NAME = "front"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate chain and its private key, in PEM files."""

    chain: Path
    key: Path

    def check(self) -> None:
        """Failure where Envoy could not use them: it would answer no client and say so in its log alone."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.chain, self.key)
        except ssl.SSLError as error:
            raise Failure(
                f"{self.chain} and {self.key} are no certificate and its key ({error.reason or error})",
                do="Name a PEM file with the certificate chain and one with its key, not encrypted.",
            ) from error
        except OSError as error:
            missing = self.key if self.chain.is_file() else self.chain
            raise Failure(
                f"{missing} cannot be read: {error.strerror}", do="Correct --tls-cert or --tls-key."
            ) from error

    def secret(self) -> Node:
        """The file that Envoy's SDS reads."""
        files = {"certificate_chain": self.chain, "private_key": self.key}
        certificate = {name: {"filename": str(path.absolute())} for name, path in files.items()}
        return {"resources": [{"@type": _SECRET, "name": _NAME, "tls_certificate": certificate}]}


def serve(listener: Node, secret_file: Path) -> None:
    """Let a listener with the option `tls` take what this secret file names."""
    for chain in listener["filter_chains"]:
        common = chain["transport_socket"]["typed_config"]["common_tls_context"]
        for secret in common["tls_certificate_sds_secret_configs"]:
            secret["sds_config"]["path_config_source"]["path"] = str(secret_file)
