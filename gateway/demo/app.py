"""The server as an ASGI application: gin's routing, Ollama's endpoints, and the `/__demo` ones that tell the truth.

Endpoints that change or reveal the operator's machine answer 200 to any method and do nothing but be recorded: a test
that finds one in `/__demo/requests` has found a hole in the gateway.
"""

from __future__ import annotations

import asyncio
import json
import posixpath
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import parse_qs

from gateway.demo import embeddings, guards, messages, names, native, openai, responses
from gateway.demo.generation import Ask, Dialect, Generation
from gateway.demo.go_json import GoError, Json, Object, Struct, encode, plain
from gateway.demo.journal import CREDENTIALS, Journal, Served, settings
from gateway.demo.models import Library, Refused
from gateway.demo.wire import JSON, Channel, ClientGone, Request, gone, read

if TYPE_CHECKING:
    from gateway.demo.wire import Message, Receive, Scope, Send

VERSION = "0.24.1"
Parse: TypeAlias = Callable[[Json, Library], tuple[Ask, Dialect]]
Refusal: TypeAlias = Callable[[int, str], tuple[bytes, str]]

_GENERATIONS: dict[str, tuple[Parse, Refusal]] = {
    "/api/chat": (native.chat, native.refusal),
    "/api/generate": (native.generate, native.refusal),
    "/api/embed": (embeddings.embed, native.refusal),
    "/api/embeddings": (embeddings.embeddings, native.refusal),
    "/v1/chat/completions": (openai.chat, openai.refusal),
    "/v1/completions": (openai.completions, openai.refusal),
    "/v1/embeddings": (embeddings.openai, openai.refusal),
    "/v1/responses": (responses.responses, openai.refusal),
    "/v1/messages": (messages.messages, messages.refusal),
}
_OPERATORS = re.compile(
    r"/api/(pull|push|create|copy|delete|ps|status|me|signout|blobs/[^/]+|user/.+|experimental/.+)"
    r"|/v1/(audio|images)/.+"
)
_MODEL = re.compile(r"/v1/models/([^/]+)")
_READS = ("/", "/api/version", "/api/tags", "/v1/models", "/api/show")
_TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and the way to answer it."""

    request: Request
    channel: Channel
    receive: Receive
    started: int  # monotonic nanoseconds

    async def json(self, body: object, status: int = 200) -> None:
        await self.channel.whole(status, encode(body))

    async def text(self, status: int, body: str) -> None:
        await self.channel.whole(status, body.encode(), _TEXT)


class App:
    """The ASGI callable, with the models and the journal that it serves from."""

    def __init__(self) -> None:
        self.library = Library()
        self.journal = Journal()
        self.added: list[tuple[bytes, bytes]] = []  # headers of every answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic_ns()
        send = self._adding(send)
        try:
            request = await read(scope, receive)
        except ClientGone:
            return
        exchange = Exchange(request, Channel(request, scope, send), receive, started)
        if request.path.startswith("/__demo/"):
            await self._demo(exchange)
            return
        self.journal.saw(request)
        if not guards.origin_allowed(request):
            await exchange.channel.whole(403, b"", _TEXT)
        elif (headers := guards.preflight(request)) is not None:
            await exchange.channel.whole(204, b"", _TEXT, headers)
        elif not guards.host_allowed(request, scope["server"][0] if scope["server"] else None):
            await exchange.channel.whole(403, b"", _TEXT)
        else:
            await self._route(exchange)

    def _adding(self, send: Send) -> Send:
        async def sends(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self.added]}
            await send(message)

        return sends if self.added else send

    async def _route(self, exchange: Exchange) -> None:
        request = exchange.request
        path, post = request.path, request.method == "POST"
        found = _GENERATIONS.get(path)
        if found and post:
            await self._generate(exchange, *found)
        elif path == "/api/show" and post:
            await self._show(exchange)
        elif _OPERATORS.fullmatch(path):
            await exchange.json({"status": "success"})
        elif request.method == "GET" or (request.method == "HEAD" and not path.startswith("/v1/")):
            await self._get(exchange)
        elif found or path in _READS or _MODEL.fullmatch(path):
            await exchange.text(405, "405 method not allowed")
        else:
            await self._nowhere(exchange)

    async def _get(self, exchange: Exchange) -> None:
        path = exchange.request.path
        if path == "/":
            await exchange.text(200, "Ollama is running")
        elif path == "/api/version":
            await exchange.json({"version": VERSION})
        elif path == "/api/tags":
            await exchange.json({"models": [model.listed() for model in self.library.newest()]})
        elif path == "/v1/models":
            cards = [model.card() for model in self.library.newest()]
            await exchange.channel.whole(200, encode({"object": "list", "data": cards or None}) + b"\n", JSON)
        elif match := _MODEL.fullmatch(path):
            await self._card(exchange, match[1])
        elif path in _GENERATIONS or path == "/api/show":
            await exchange.text(405, "405 method not allowed")
        else:
            await self._nowhere(exchange)

    async def _nowhere(self, exchange: Exchange) -> None:
        """Not a route as it stands: Go's mux cleans a path, gin drops a last slash, both by redirection."""
        request = exchange.request
        clean = posixpath.normpath("/" + request.path.lstrip("/"))
        if clean == request.path or request.method == "CONNECT":
            await exchange.text(404, "404 page not found")
            return
        status = 301 if request.method == "GET" else 307
        await exchange.channel.whole(status, b"", _TEXT, (("location", clean.encode().decode("latin-1")),))

    async def _card(self, exchange: Exchange, asked: str) -> None:
        """`/v1/models/{model}`: the name comes back as it was asked for."""
        try:
            card = self.library.find(asked).card() | {"id": asked}
        except Refused as refused:
            await exchange.channel.whole(refused.status, *openai.refusal(refused.status, refused.message))
        else:
            await exchange.channel.whole(200, encode(card) + b"\n", JSON)

    async def _show(self, exchange: Exchange) -> None:
        try:
            bound = Struct("ShowRequest", native.body(exchange.request.body))
            model = self.library.find(bound.string("model") or bound.string("name"))
        except (Refused, GoError) as error:
            status, message = (error.status, error.message) if isinstance(error, Refused) else (400, str(error))
            await exchange.channel.whole(status, *native.refusal(status, message))
        else:
            await exchange.json(model.shown())

    async def _generate(self, exchange: Exchange, parse: Parse, refusal: Refusal) -> None:
        request, channel = exchange.request, exchange.channel
        try:
            value = native.body(request.decompressed() if request.path.startswith("/v1/") else request.body)
            ask, dialect = parse(value, self.library)
            served = self._record(request, value, ask)
            generation = Generation(ask, dialect, channel, served, exchange.started)
            try:
                await _while_connected(generation, exchange.receive)
            except* ClientGone:
                served.end("aborted")
            finally:
                served.end("error")  # whatever was not an end is a fault of ours, and will be logged as one
        except (Refused, GoError) as error:
            status, message = (error.status, error.message) if isinstance(error, Refused) else (400, str(error))
            await channel.whole(status, *refusal(status, message))

    def _record(self, request: Request, value: Json, ask: Ask) -> Served:
        members = value.members if isinstance(value, Object) else []
        whole = plain(value)
        name = names.parse(ask.model)
        assert name is not None, "the library found it"  # noqa: S101  # for the type checker: find() refuses the rest
        fields = whole if isinstance(whole, dict) else {}
        options = fields.get("options")
        present = {key for key, _ in request.headers}
        served = Served(
            self.journal.next_index,
            request.header("x-request-id"),
            ask.model,
            name.short,
            name.cloud,
            request.path,
            ask.stream,
            ask.prompt_tokens,
            sorted(present),
            sorted(present & set(CREDENTIALS)),
            [key for key, _ in members],
            settings(members, fields),
            options if isinstance(options, dict) else {},
        )
        self.journal.add(served)
        return served

    async def _demo(self, exchange: Exchange) -> None:
        request = exchange.request
        match request.method, request.path:
            case "GET", "/__demo/served":
                since = parse_qs(request.query).get("since", ["0"])[-1]
                await exchange.json(self.journal.served(int(since) if since.isdecimal() else 0))
            case "GET", "/__demo/requests":
                await exchange.json(self.journal.requests())
            case "POST", "/__demo/reset":
                self.journal.reset()
                await exchange.json({"status": "reset"})
            case "PUT", "/__demo/models":
                try:
                    self.library.install([str(name) for name in json.loads(request.body)])
                except (ValueError, TypeError) as error:
                    await exchange.json({"error": str(error)}, 400)
                else:
                    await exchange.json({"models": [model.name for model in self.library.newest()]})
            case "PUT", "/__demo/headers":
                self.added = [(name.encode(), value.encode()) for name, value in json.loads(request.body)]
                await exchange.json({"status": "added"})
            case _:
                await exchange.text(404, "404 page not found")


async def _while_connected(generation: Generation, receive: Receive) -> None:
    """Run it, and stop it at once when the client leaves: then raises ClientGone, in a group. Raises Refused bare."""
    refused: Refused | None = None
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(gone(receive))
        try:
            await generation.run()
        except Refused as error:
            refused = error
        watch.cancel()
    if refused:
        raise refused
