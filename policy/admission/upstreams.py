"""What one Ollama is and how it is asked: its address, one bounded `GET /api/tags`, and what can fail in it.

Whatever the other side sends, an answer costs a bounded time and a bounded number of bytes.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from policy.rules import tags

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from policy.rules.tags import Installed

POLL_TIMEOUT = 5.0  # seconds for one whole answer, connection included
RESOLVE_TIMEOUT = 2.0  # seconds


class Fault(StrEnum):
    """Why a poll failed. The value is a metric label."""

    NONE = "ok"
    CONNECT = "connect"  # no connection, or it broke
    TIMEOUT = "timeout"
    STATUS = "status"  # not 200
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"  # not a list of models


class PollFailed(Exception):
    """An upstream did not give its list of models."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Upstream:
    """One configured Ollama."""

    id: str  # host:port, as configured: no secret in it
    url: str  # scheme://host:port
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> Upstream:
        """Read a base URL such as http://127.0.0.1:11434; ValueError, with what to write, on anything else."""
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an upstream is a URL such as http://127.0.0.1:11434")
        if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("an upstream is scheme, host and port alone: no user, path or query")
        port = parts.port or (443 if parts.scheme == "https" else 11434)  # Ollama's own default, not 80
        address = address_of(parts.hostname, port)
        return cls(address, f"{parts.scheme}://{address}", parts.hostname, port)


def address_of(host: str, port: int) -> str:
    """host:port, in brackets where `host` is IPv6 (RFC 3986, 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class Access:
    """What the upstreams demand of who asks them, and which certificates are believed."""

    key: str = field(default="", repr=False)  # sent as a bearer token
    authority: Path | None = None  # PEM; None: the system's


def trust(access: Access, upstreams: Iterable[Upstream]) -> ssl.SSLContext | bool:
    """What certificates of these upstreams are held against. ValueError where the CA's file cannot be used."""
    if not any(upstream.url.startswith("https:") for upstream in upstreams):
        return False
    try:
        return ssl.create_default_context(cafile=access.authority)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"PADDOCK_UPSTREAM_CA_FILE cannot be used: {error}") from error


def new_client(key: str = "", verify: ssl.SSLContext | bool = False) -> httpx.AsyncClient:
    """A client for polls: no proxy or .netrc from the environment, and no connection kept from poll to poll, so that
    each one resolves the name anew and proves that the upstream still accepts. It follows no redirect: a key goes where
    it was meant to go."""
    headers = {"accept-encoding": "identity", "user-agent": "paddock-discovery"}
    return httpx.AsyncClient(
        trust_env=False,
        follow_redirects=False,
        timeout=POLL_TIMEOUT,
        limits=httpx.Limits(max_keepalive_connections=0),
        verify=verify,
        headers=headers | {"authorization": f"Bearer {key}"} if key else headers,
    )


async def fetch(client: httpx.AsyncClient, upstream: Upstream) -> bytes:
    """`GET /api/tags`, bounded by POLL_TIMEOUT and `tags.BODY_MAX`; PollFailed where there is no answer to read."""
    try:
        async with (
            asyncio.timeout(POLL_TIMEOUT),  # of the whole: httpx's own bounds each read, which a slow drip satisfies
            client.stream("GET", f"{upstream.url}/api/tags") as response,
        ):
            if response.status_code != 200:
                raise PollFailed(Fault.STATUS)
            if (
                response.headers.get("content-encoding", "identity") != "identity"
            ):  # asked for none: a bomb, or no Ollama
                raise PollFailed(Fault.MALFORMED)
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > tags.BODY_MAX:
                    raise PollFailed(Fault.TOO_LARGE)
            return bytes(body)
    except (TimeoutError, httpx.TimeoutException) as error:
        raise PollFailed(Fault.TIMEOUT) from error
    except httpx.RemoteProtocolError as error:  # an answer, and not HTTP
        raise PollFailed(Fault.MALFORMED) from error
    except httpx.HTTPError as error:
        raise PollFailed(Fault.CONNECT) from error


def read(body: bytes) -> tuple[Installed, ...]:
    """The models of an answer; PollFailed where it is no list of models."""
    try:
        return tags.read(body)
    except ValueError as error:
        raise PollFailed(Fault.MALFORMED) from error


async def resolve(upstream: Upstream) -> tuple[str, ...]:
    """ip:port of everything behind the upstream's name; () where it does not resolve.

    Envoy's override_host compares these with the hosts of its cluster, so the choice is the cluster's own
    (`dns_lookup_family: V4_PREFERRED`): IPv6 only where there is no IPv4. What stands behind one name is taken to be
    replicas that have the same models.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT):
            found = await loop.getaddrinfo(upstream.host, upstream.port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):  # UnicodeError: a label that IDNA refuses
        return ()
    by_family = {
        wanted: sorted({address_of(str(to[0]), upstream.port) for family, _, _, _, to in found if family == wanted})
        for wanted in (socket.AF_INET, socket.AF_INET6)
    }
    return tuple(by_family[socket.AF_INET] or by_family[socket.AF_INET6])
