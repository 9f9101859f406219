"""What Ollama refuses before it looks at the path: foreign Host headers on loopback, and foreign Origins.

Both are 403 with an empty body, and both bite gateways: one that passes a client's Host or Origin on to an Ollama that
listens on 127.0.0.1 gets this in place of an answer.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.demo.wire import Headers, Request

_LOCAL_NAMES = re.compile(r"(localhost)?|.*\.(localhost|local|internal)")
_ORIGINS = re.compile(
    r"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0)(:.*)?"
    r"|(app|file|tauri|vscode-webview|vscode-file|chrome-extension|safari-extension|moz-extension|ms-browser-extension)"
    r"://.*"
)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def host_allowed(request: Request, listener: str | None) -> bool:
    """Whether a server that listens on that address (None: a Unix socket) takes the request's Host."""
    own = _address(listener or "")
    if own is None or not own.is_loopback:
        return True
    authority = request.header("host") or ""
    host = re.sub(r":\d*$", "", authority).strip("[]") if "]" in authority or authority.count(":") < 2 else authority
    address = _address(host)
    if address is not None:
        return address.is_loopback or address.is_private or address.is_unspecified
    return bool(_LOCAL_NAMES.fullmatch(host.lower())) or host.lower() == socket.gethostname().lower()


def origin_allowed(request: Request) -> bool:
    origin = request.header("origin")
    if not origin:
        return True
    host = request.header("host")
    return origin in (f"http://{host}", f"https://{host}") or bool(_ORIGINS.fullmatch(origin))


def preflight(request: Request) -> Headers | None:
    """The headers that answer a CORS preflight, or None when the request is not one."""
    origin = request.header("origin")
    if request.method != "OPTIONS" or not origin:
        return None
    return (
        ("access-control-allow-origin", origin),
        ("access-control-allow-methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
        ("access-control-allow-headers", "Authorization,Content-Type,User-Agent,Accept,X-Requested-With"),
        ("access-control-max-age", "43200"),
    )
