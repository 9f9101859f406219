"""uvicorn around the application: the connection lent to it, a line when it listens, and an end without waiting."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.demo.app import App
from gateway.demo.wire import TRANSPORT

if TYPE_CHECKING:
    from types import FrameType

_IDLE = 3600  # seconds; a gateway's pooled connection must not be closed just as it is used again


class _Protocol(HttpToolsProtocol):
    """Lends the transport to the application, which is asked to break connections."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {TRANSPORT: self.transport}  # type: ignore[dict-item]  # ASGI says dict, this is ours


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for sock in sockets or ():
            if sock.family == socket.AF_INET:
                print("listening on http://{}:{}".format(*sock.getsockname()), flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Hang up on everyone, as Ollama does, rather than wait for answers that may never end."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, HttpToolsProtocol):
                connection.transport.abort()
        await super().shutdown(sockets)


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    """uvicorn raises the signal again when it has shut down; that is the time to go, and it is no failure."""
    sys.exit(0)


def _bind(family: socket.AddressFamily, address: tuple[str, int] | str) -> socket.socket:
    sock = socket.socket(family)
    try:
        if family == socket.AF_INET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        where = address if isinstance(address, str) else "{}:{}".format(*address)
        sys.exit(f"demo upstream: cannot listen on {where}: {error.strerror}")
    return sock


def serve(host: str, port: int, unix: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Port 0 is any free port; the line printed tells which."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    sockets = [_bind(socket.AF_INET, (host, port))]
    if unix:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unix)
        sockets.append(_bind(socket.AF_UNIX, unix))
    config = uvicorn.Config(
        App(),
        loop="uvloop",
        http=_Protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_IDLE,
    )
    try:
        _Server(config).run(sockets)
    finally:
        if unix:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(unix)
