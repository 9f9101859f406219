"""What is outside a local instance and must answer before it starts: Ollama, and stores that are not embedded."""

from __future__ import annotations

import asyncio
import json
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from gateway import probe
from gateway.failure import Failure
from policy.rules import store_urls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

DEFAULT = "http://127.0.0.1:11434"  # where Ollama listens unless told otherwise
_PATIENCE = 5.0  # seconds
_SCHEMES = {"PADDOCK_DATABASE_URL": store_urls.POSTGRESQL, "PADDOCK_REDIS_URL": store_urls.REDIS}


def normal(url: str) -> str:
    """The base URL in full, as `scheme://host:port`. ValueError when it is none."""
    text = url.strip()
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url} is no address of an Ollama; write http://HOST:PORT")
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{url}: an upstream is scheme, host and port alone")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = parts.port or (443 if parts.scheme == "https" else 11434)
    return f"{parts.scheme}://{host}:{port}"


async def check(urls: Sequence[str], say: Callable[[str], None], key: str = "", authority: Path | None = None) -> None:
    """Ask each upstream for its version. One that is down is told; Failure when none answers."""
    began = monotonic()
    answers = await asyncio.gather(*(_version(url, key, authority) for url in urls))
    for url, (version, reason) in zip(urls, answers, strict=True):
        if version is not None:
            say(f"  {'ollama':<14} {version + ' at ' + url:<18} {monotonic() - began:5.2f} s")
        elif len(urls) > 1:
            say(f"  {'ollama':<14} {url} {reason}")
    if not any(version is not None for version, _ in answers):
        raise Failure(
            "Ollama does not answer",
            quote="\n".join(f"{url} {reason}" for url, (_, reason) in zip(urls, answers, strict=True)),
            do="Start it (`ollama serve`), or name it with --upstream. To look around without one: `paddock demo`.",
        )


async def _version(url: str, key: str, authority: Path | None) -> tuple[str | None, str]:
    try:
        status, body = await probe.get(f"{url}/api/version", _PATIENCE, key=key, authority=authority)
        return str(json.loads(body)["version"]) if status == 200 else None, f"answers with status {status}"
    except TimeoutError:
        return None, f"did not answer within {_PATIENCE:.0f} s"
    except OSError as error:
        reason = getattr(error, "reason", error)
        return None, f"does not answer: {getattr(reason, 'strerror', None) or reason}"
    except (ValueError, KeyError, TypeError):
        return None, "answers, but not as Ollama does"


async def store_answers(name: str, url: str) -> None:
    """Something accepts connections where the store's URL points. Failure, without the URL's password, if not."""
    wrong = store_urls.wrong_with(url, _SCHEMES[name])
    if wrong:
        raise Failure(f"{name}: {wrong}", do=f"Correct {name}.")
    parts = urlsplit(url)
    default = 6379 if parts.scheme.startswith("redis") else 5432
    path = parts.path if parts.scheme.endswith("unix") else parse_qs(parts.query).get("host", [""])[0]
    places = []
    for one in parts.netloc.rpartition("@")[2].split(","):  # of PostgreSQL several may be named: one has to answer
        place = urlsplit(f"//{one}")
        places.append((path or place.hostname or "127.0.0.1", place.port or default))
    for host, port in places:
        try:
            await _connect(host, port, postgresql=name == "PADDOCK_DATABASE_URL")
            return
        except OSError as error:  # TimeoutError too
            fault = error
    where = " or ".join(host if host.startswith("/") else f"{host}:{port}" for host, port in places)
    raise Failure(
        f"{name}: nothing answers at {where} ({fault.strerror or 'no answer in time'})",
        do=f"Start that server, or unset {name} to have an embedded one.",
    ) from fault


async def _connect(host: str, port: int, *, postgresql: bool) -> None:
    """Connect, and hang up; a path is a Unix socket's, or with PostgreSQL its directory's."""
    async with asyncio.timeout(_PATIENCE):
        if not host.startswith("/"):
            _, writer = await asyncio.open_connection(host, port)
        else:
            _, writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}" if postgresql else host)
    writer.close()
