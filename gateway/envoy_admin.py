"""What the launcher asks of Envoy's admin page, which listens on a Unix socket in the instance's directory."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_POLL_SECONDS = 0.05


async def drain(socket: Path) -> None:
    """Ask Envoy to end its connections after the answers under way; return when no request is open. OSError when it
    cannot be asked. Whoever calls this bounds the time: a long generation may take minutes."""
    await ask(socket, "POST", "/drain_listeners?graceful&skip_exit")
    while await open_requests(socket):  # noqa: ASYNC110  # another process: there is no event to wait for
        await asyncio.sleep(_POLL_SECONDS)


async def open_requests(socket: Path) -> int:
    """Requests that clients wait for. OSError when it cannot be asked."""
    text = await ask(socket, "GET", "/stats?filter=^http.front.downstream_rq_active$")
    number = text.rpartition(":")[2].strip()
    return int(number) if number.isdecimal() else 0


async def ask(socket: Path, method: str, target: str) -> str:
    """The body of an answer of the admin page. OSError when nothing answers."""
    reader, writer = await asyncio.open_unix_connection(socket)
    with contextlib.closing(writer):
        writer.write(
            f"{method} {target} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode()
        )
        answer = (await reader.read()).decode(errors="replace")
    head, _, body = answer.partition("\r\n\r\n")
    return "\n".join(body.split("\r\n")[1::2]) if "transfer-encoding: chunked" in head.lower() else body
