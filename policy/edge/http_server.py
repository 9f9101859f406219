"""Serves the HTTP app with uvicorn in the event loop that also serves gRPC.

uvicorn is told to keep its hands off what the process owns: signals, logging, the loop. The socket is bound here, so
that a Unix socket is 0600 from its first moment (uvicorn would make it 0666).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING

import uvicorn

from policy.edge import listening

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policy.edge.endpoints import Endpoints
    from policy.rules.settings import TlsFiles

BACKLOG = 1024
# Above the hour after which Envoy drops an idle upstream connection: the side that closes first must be Envoy, else a
# request can meet a connection that is just being closed.
KEEP_ALIVE = 2 * 3600  # seconds
GRACE = 5  # seconds for answers under way at shutdown


async def serve(
    app: Endpoints, bound: socket.socket, *, started: asyncio.Event | None = None, tls: TlsFiles | None = None
) -> None:
    """Serve `app` on a socket of `bind` until cancelled; then no new connection, GRACE for the answers under way."""
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,  # Envoy sets its own
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )
    if tls is not None and bound.family != socket.AF_UNIX:
        config.load()
        config.ssl = listening.context(tls)
    server = _Server(config)
    server.on_start = started
    try:
        await server.serve(sockets=[bound])
    except asyncio.CancelledError:
        if server.started:
            await server.shutdown(sockets=[bound])
        raise
    finally:
        bound.close()


def bind(listen: str) -> socket.socket:
    """A bound stream socket for `unix:/path` or `host:port` ([::1]:port for IPv6).

    ValueError on another form, OSError where the address is taken. A Unix socket stays behind at the end, as the next
    start replaces it: to remove it then could remove a successor's.
    """
    if listen.startswith("unix:"):
        return _bind_unix(listen.removeprefix("unix:"))
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError(f"cannot listen on {listen!r}: write unix:/path or host:port")
    host = host.strip("[]")
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, int(port)))
    except OSError:
        bound.close()
        raise
    return bound


def _bind_unix(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):  # left by a process that died; never remove what is no socket
            os.unlink(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        bound.bind(path)
    except OSError:
        bound.close()
        raise
    finally:
        os.umask(before)
    return bound


class _Server(uvicorn.Server):
    on_start: asyncio.Event | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the process: `__main__` ends gRPC, HTTP and the background work together."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.on_start is not None:
            self.on_start.set()
