"""How to tell from outside that a part answers."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.part import Probe

_PATIENCE = 2.0  # seconds for one attempt

# A proxy named in the environment is for the way out, never for a part on this machine or an upstream on this network.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_ANYBODY = urllib.request.build_opener(
    urllib.request.ProxyHandler({}),
    urllib.request.HTTPSHandler(context=ssl._create_unverified_context()),  # noqa: S323  # see `get`
)


def sockets_accept(*paths: Path) -> Probe:
    """Every one of these Unix sockets takes connections."""
    probes = [_accepts(path) for path in paths]

    async def probe() -> bool:
        return all([await probe() for probe in probes])

    return probe


def port_accepts(host: str, port: int) -> Probe:
    async def probe() -> bool:
        try:
            async with asyncio.timeout(_PATIENCE):
                _, writer = await asyncio.open_connection(host, port)
        except OSError:  # refused, or (TimeoutError) lost
            return False
        writer.close()
        return True

    return probe


def valkey_answers(path: Path) -> Probe:
    """It says PONG; while it still reads its file it says LOADING."""

    async def probe() -> bool:
        try:
            async with asyncio.timeout(_PATIENCE):
                reader, writer = await asyncio.open_unix_connection(path)
                with contextlib.closing(writer):
                    writer.write(b"PING\r\n")
                    return (await reader.readline()).startswith(b"+PONG")
        except OSError:  # not there yet
            return False

    return probe


def postgres_ready(pid_file: Path, path: Path) -> Probe:
    """It says so in the eighth line of postmaster.pid, as pg_ctl reads it, and this is not a dead one's file: it also
    accepts connections. The socket alone accepts earlier, while the log is still being recovered."""
    accepts = _accepts(path)

    async def probe() -> bool:
        try:
            lines = pid_file.read_bytes().splitlines()  # noqa: ASYNC240  one block of a local file
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[7].strip() == b"ready" and await accepts()

    return probe


def _accepts(path: Path) -> Probe:
    async def probe() -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(path)
        except OSError:  # not there yet
            return False
        writer.close()
        return True

    return probe


async def get(
    url: str, patience: float = _PATIENCE, *, verify: bool = True, key: str = "", authority: Path | None = None
) -> tuple[int, bytes]:
    """Status and body of a GET; OSError when nothing answers, ValueError when the URL or the answer is not HTTP.
    `verify` False takes any certificate: for a part that we started ourselves. `authority` is the CA to believe instead
    of the system's, `key` a bearer token."""
    opener = _DIRECT if verify else _ANYBODY
    if authority is not None:
        believed = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=authority))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), believed, _NoRedirect)
    elif key:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    return await asyncio.to_thread(_get, url, patience, opener, key)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key goes where it was meant to go."""

    def redirect_request(self, *_: object) -> None:
        return None


def _get(url: str, patience: float, opener: urllib.request.OpenerDirector, key: str) -> tuple[int, bytes]:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"not an http:// or https:// address: {url}")
    try:
        asked = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})  # noqa: S310
        with opener.open(asked, timeout=patience) as answer:
            return answer.status, answer.read(65536)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(65536)
    except HTTPException as error:
        raise ValueError(f"{url} does not speak HTTP") from error
