"""Where the services listen: a Unix socket of this user alone, plain TCP on one machine, or mutual TLS across machines.

Whoever can call these listeners can ask about keys and settle reservations, so TLS here always asks the caller for a
certificate: one of the CA that the setting names, which is Envoy's. Certificates are read again when their files
change, for the connections that come then; a file that cannot be used leaves the last good one in force.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
from typing import TYPE_CHECKING

import grpc
import grpc.aio

if TYPE_CHECKING:
    from policy.rules.settings import TlsFiles

log = logging.getLogger(__name__)

Stamp = tuple[tuple[int, int], ...]


async def listen(server: grpc.aio.Server, address: str, tls: TlsFiles | None) -> None:
    """Bind `address` (`unix:/path` or `host:port`) and start serving. ValueError where TLS files cannot be used."""
    before = os.umask(0o177)  # a Unix socket belongs to this user alone from its first moment on
    try:
        if address.startswith("unix:"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address.removeprefix("unix:"))
            server.add_insecure_port(address)
        elif tls is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, _credentials(tls))
        await server.start()
    finally:
        os.umask(before)


def context(tls: TlsFiles) -> ssl.SSLContext:
    """For the HTTP listener: the same certificates. ValueError where the files cannot be used."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.verify_mode = ssl.CERT_REQUIRED
    _load(made, tls)
    watch = _Changes(tls)

    def renewed(_socket: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        if watch.changed():
            try:
                _load(made, tls)
            except ValueError as error:
                log.error("certificates not renewed", extra={"fault": str(error)})

    # Asked at the start of each handshake, which goes on with the certificate of before: the one after has the new.
    made.sni_callback = renewed
    return made


def _load(made: ssl.SSLContext, tls: TlsFiles) -> None:
    try:
        made.load_cert_chain(tls.cert, tls.key)
        made.load_verify_locations(tls.client_ca)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"the TLS files cannot be used: {error}") from error


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    watch = _Changes(tls)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        if not watch.changed():
            return None  # as before
        try:
            return _configuration(tls)
        except ValueError as error:
            log.error("certificates not renewed", extra={"fault": str(error)})
            return None

    credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
        _configuration(tls),
        fetch,  # type: ignore[arg-type]  # the stubs forget that it may return None
        require_client_authentication=True,
    )
    return credentials


def _configuration(tls: TlsFiles) -> grpc.ServerCertificateConfiguration:
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tls)  # grpc takes anything and then refuses every caller
    pair = (tls.key.read_bytes(), tls.cert.read_bytes())
    configuration: grpc.ServerCertificateConfiguration = grpc.ssl_server_certificate_configuration(
        [pair], root_certificates=tls.client_ca.read_bytes()
    )
    return configuration


class _Changes:
    """Whether the files are others than when last asked."""

    def __init__(self, tls: TlsFiles) -> None:
        self._tls = tls
        self._stamp = self._now()

    def changed(self) -> bool:
        before, self._stamp = self._stamp, self._now()
        return before != self._stamp

    def _now(self) -> Stamp:
        found = []
        for path in self._tls:
            with contextlib.suppress(OSError):  # just being replaced: the next handshake looks again
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_ino))
        return tuple(found)
