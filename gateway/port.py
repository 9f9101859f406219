"""The port of the front door: free before Envoy asks for it, and ours from then on.

Envoy listens with SO_REUSEPORT, under which the kernel lets a second Envoy of the same user share the port in silence.
So the launcher first binds without that option, which fails if anybody at all listens, and then keeps a bound socket
of its own that never listens: it takes no connection away from Envoy, and nobody else gets the port while Envoy is
down for a moment.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import Self

from gateway.failure import Failure


@dataclass(frozen=True, slots=True)
class Port:
    """A claimed TCP port. `address` is numeric."""

    address: str
    number: int
    _holder: socket.socket

    @property
    def url(self) -> str:
        """Where a client on this machine finds it."""
        near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address, self.address)  # noqa: S104  compared, not bound
        return f"http://[{near}]:{self.number}" if ":" in near else f"http://{near}:{self.number}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.close()


def claim(host: str, number: int) -> Port:
    """Claim the port; 0 means any free one. Failure if it is taken or not ours to take."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, OverflowError, UnicodeError) as error:
        raise Failure(f"{host}:{number} is no address to listen on ({error})", do="Name one with --host.") from error
    address = str(where[0])
    try:
        if number != 0:
            with socket.socket(family) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections may linger, listeners not
                alone.bind((address, number))
        holder = socket.socket(family)
        try:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind((address, number))
        except OSError:
            holder.close()
            raise
    except OSError as error:
        raise _explained(error, host, number) from error
    return Port(address, holder.getsockname()[1], holder)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def _explained(error: OSError, host: str, number: int) -> Failure:
    if error.errno == errno.EADDRINUSE:
        return Failure(
            f"port {number} on {host} is taken by another program",
            do=f"Stop that program (`ss -ltnp 'sport = :{number}'` names it), or choose another port: "
            f"--port {number + 1}, or PORT={number + 1} make demo.",
        )
    if error.errno == errno.EACCES:
        return Failure(f"port {number} needs privileges", do="Choose one above 1023 with --port.")
    return Failure(f"cannot listen on {host}:{number}: {error.strerror}", do="Choose another with --host and --port.")
