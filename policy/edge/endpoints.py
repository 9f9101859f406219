"""The small HTTP app: what the gateway answers by itself, as plain ASGI behind Envoy's `policy_http` cluster.

GET/HEAD /api/tags and GET /v1/models   the key's effective set; the key is checked here again, because a listener that
                                        answers whoever reaches it would be a way around ext_authz
GET/HEAD /api/version                   the gateway's version
GET/HEAD /pki/public_key                the key that envelopes are sealed to, PEM, for anybody
GET /readyz, /healthz                   readiness with each dependency named (?exclude=ollama: but for it); liveness
GET /metrics                            Prometheus text, for loopback (Envoy's RBAC says so too)
GET/HEAD /session/…                     the session client and its example page, where there are browser sessions

Everything else is the generic 403. The two lists are serialised once per snapshot and set of models, not per request.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

from policy.edge import pages
from policy.rules.decision import Deny, Reason
from policy.rules.endpoints import DETAILED, PUBLIC_KEY_PATH
from policy.rules.keys import credential
from policy.rules.models import effective
from policy.rules.tags import models_body, tags_body

if TYPE_CHECKING:
    from policy.admission.discovery import Snapshot
    from policy.edge.readiness import Readiness
    from policy.rules.tenants import Key

LISTS_MAX = 16 * 1024 * 1024  # bytes of serialised lists kept
_LONGEST_QUERY = 200  # bytes, of /readyz
LOOPBACK = ("127.0.0.0/8", "::1/128")

Scope = MutableMapping[str, Any]  # the ASGI specification's own type: its values are of many kinds
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]  # likewise
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]  # likewise
Fields = Iterable[tuple[bytes, bytes]]

log = logging.getLogger(__name__)


class Authenticate(Protocol):
    """The keyring: whose key it is, or the refusal. It raises when it cannot tell."""

    async def __call__(self, presented: str | None, address: str, now: datetime) -> Key | Deny: ...


class Catalogue(Protocol):
    """Discovery, as far as the lists need it."""

    @property
    def snapshot(self) -> Snapshot: ...


@dataclass(frozen=True, slots=True)
class Response:
    """One complete answer."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    cache: bytes = b"no-store"
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Endpoints:
    """The ASGI app."""

    def __init__(
        self,
        *,
        version: str,
        catalogue: Catalogue,
        authenticate: Authenticate,
        readiness: Readiness,
        exposition: Callable[[], bytes],
        metrics_from: Iterable[str] = LOOPBACK,
        sessions_on: Callable[[], bool] = lambda: False,
        server_key: Callable[[], bytes | None] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`exposition` gives the Prometheus text (it runs in a thread); `metrics_from`: networks that may read it;
        `server_key` the PEM of the key for envelopes, None while there is none (in a thread too; absent: disabled);
        `sessions_on`: whether there are browser sessions at all."""
        self._catalogue = catalogue
        self._authenticate = authenticate
        self._readiness = readiness
        self._exposition = exposition
        self._metrics_from = tuple(ipaddress.ip_network(network) for network in metrics_from)
        self._server_key = server_key
        self._now = now
        self._version = Response(200, json.dumps({"version": version}, separators=(",", ":")).encode())
        self._lists = _Lists()
        self._scraping = asyncio.Lock()
        self._sessions_on = sessions_on
        self._pages = pages.load()
        self._routes: dict[tuple[str, str], Callable[[Scope], Awaitable[Response]]] = {
            ("GET", "/api/tags"): self._tags,
            ("HEAD", "/api/tags"): self._tags,
            ("GET", "/v1/models"): self._models,
            ("GET", "/api/version"): self._get_version,
            ("HEAD", "/api/version"): self._get_version,
            ("GET", PUBLIC_KEY_PATH): self._public_key,
            ("HEAD", PUBLIC_KEY_PATH): self._public_key,
            ("GET", "/readyz"): self._readyz,
            ("HEAD", "/readyz"): self._readyz,
            ("GET", "/healthz"): self._healthz,
            ("HEAD", "/healthz"): self._healthz,
            ("GET", "/metrics"): self._metrics,
            ("HEAD", "/metrics"): self._metrics,
            **{(method, path): self._page for method in ("GET", "HEAD") for path in (*self._pages, "/session")},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        route = self._routes.get((scope["method"], scope["path"]), self._blocked)
        try:
            response = await route(scope)
        except Exception:  # fail closed, in the gateway's own words: whatever went wrong, nothing was decided
            log.exception("endpoint_fault", extra={"path": scope["path"], "request_id": _request_id(scope)})
            response = _refusal(Deny(Reason.FAULT), scope)
        headers = [
            (b"content-type", response.content_type),
            *([] if response.status == 304 else [(b"content-length", b"%d" % len(response.body))]),
            (b"cache-control", response.cache),
            *response.headers,
        ]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    async def _tags(self, scope: Scope) -> Response:
        return await self._list(scope, tags_body)

    async def _models(self, scope: Scope) -> Response:
        return await self._list(scope, models_body)

    async def _list(self, scope: Scope, form: _Form) -> Response:
        who = await self._authenticate(credential(_credentials(scope["headers"])), _client(scope) or "", self._now())
        if isinstance(who, Deny):
            return _refusal(who, scope)
        snapshot = self._catalogue.snapshot
        if not snapshot.models and not snapshot.reachable:
            # Nothing is known because nothing answers: an empty list would be a lie, and says nothing of any model.
            return _refusal(Deny(Reason.UPSTREAM), scope)
        return Response(200, self._lists.body(form, snapshot, who))

    async def _get_version(self, scope: Scope) -> Response:
        return self._version

    async def _public_key(self, scope: Scope) -> Response:
        if self._server_key is None:
            return _refusal(Deny(Reason.NO_ENVELOPES), scope)
        pem = await asyncio.to_thread(self._server_key)  # it reads files
        if pem is None:  # the first processor is making it
            return _refusal(Deny(Reason.SERVER_KEY), scope)
        return Response(200, pem, b"text/plain; charset=utf-8")

    async def _healthz(self, scope: Scope) -> Response:
        return Response(200, b'{"status":"ok"}')

    async def _readyz(self, scope: Scope) -> Response:
        asked = parse_qs(scope["query_string"][:_LONGEST_QUERY].decode("latin-1"))
        return Response(*await self._readiness.answer(asked.get("exclude", ())))

    async def _metrics(self, scope: Scope) -> Response:
        if not self._may_scrape(scope):
            return await self._blocked(scope)
        async with self._scraping:  # one at a time: it is the one answer here that costs milliseconds
            return Response(200, await asyncio.to_thread(self._exposition), b"text/plain; version=0.0.4; charset=utf-8")

    async def _page(self, scope: Scope) -> Response:
        if not self._sessions_on():
            return await self._blocked(scope)
        page = self._pages.get(scope["path"])
        if page is None:  # the page, without the slash that its own links need
            return Response(308, b"", headers=((b"location", b"/session/"),))
        headers = (*page.headers, (b"etag", page.etag))
        if page.unchanged(_field(scope["headers"], b"if-none-match")):
            return Response(304, b"", page.content_type, b"no-cache", headers)
        return Response(200, page.body, page.content_type, b"no-cache", headers)

    async def _blocked(self, scope: Scope) -> Response:
        return _refusal(Deny(Reason.ENDPOINT), scope)

    def _may_scrape(self, scope: Scope) -> bool:
        """Both the peer and, behind a proxy, the client must be in a network that may: who connects without a proxy
        can write into x-forwarded-for whatever it likes. The peer of a Unix socket is this machine."""
        peer = scope.get("client")
        addresses = [str(peer[0])] if peer else []
        forwarded = _forwarded_for(scope)
        if forwarded is not None:
            addresses.append(forwarded)
        return all(self._is_scraper(address) for address in addresses)

    def _is_scraper(self, address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return any(ip in network for network in self._metrics_from)


_Form = Callable[[Iterable[Mapping[str, object]]], bytes]


class _Lists:
    """Serialised lists of one set of discovered models, by what decides them."""

    def __init__(self) -> None:
        self._of: object = None
        self._bodies: dict[tuple[object, ...], bytes] = {}
        self._size = 0

    def body(self, form: _Form, snapshot: Snapshot, key: Key) -> bytes:
        models = snapshot.models
        if models is not self._of or self._size > LISTS_MAX:
            self._of, self._bodies, self._size = models, {}, 0
        wanted = (form, key.tenant.allow_all_models, key.tenant.models, key.models)
        body = self._bodies.get(wanted)
        if body is None:
            body = self._bodies[wanted] = form(found.details for found in effective(key, models).values())
            self._size += len(body)
        return body


def _refusal(deny: Deny, scope: Scope) -> Response:
    headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in deny.answer_headers)
    return Response(deny.status, deny.body(_request_id(scope), detail=scope["path"] in DETAILED), headers=headers)


def _field(headers: Fields, wanted: bytes) -> str | None:
    """The last field line of that name: where Envoy appends, the last is the one that it wrote."""
    found = None
    for name, value in headers:
        if name == wanted:
            found = value
    return None if found is None else found.decode("latin-1")


def _request_id(scope: Scope) -> str:
    """What Envoy set; it replaces whatever a client sent (`use_remote_address`)."""
    return _field(scope["headers"], b"x-request-id") or ""


def _client(scope: Scope) -> str | None:
    """The client's address: the last hop of x-forwarded-for, which Envoy appends, else the peer; None for a Unix
    socket without a proxy in front."""
    forwarded = _forwarded_for(scope)
    if forwarded is not None:
        return forwarded
    peer = scope.get("client")
    return str(peer[0]) if peer else None


def _forwarded_for(scope: Scope) -> str | None:
    """The last hop of x-forwarded-for, which is the one that Envoy wrote; None without the field."""
    forwarded = _field(scope["headers"], b"x-forwarded-for")
    return None if forwarded is None else forwarded.rpartition(",")[2].strip()


def _credentials(headers: Fields) -> dict[str, str]:
    """The header fields that may carry a key, repeated ones joined as Envoy joins them for ext_authz."""
    found: dict[str, str] = {}
    for raw, value in headers:
        if raw in (b"authorization", b"x-api-key"):
            name, text = raw.decode(), value.decode("latin-1")
            found[name] = f"{found[name]},{text}" if name in found else text
    return found
