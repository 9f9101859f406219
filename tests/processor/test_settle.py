"""Settlements of what Envoy metered, through a real socket: each is taken once, and nothing else is."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from policy.edge.http_check import HttpChecks
from policy.edge.http_codec import reply
from policy.rules.grant import Duty, Grant
from processor.edge.settle import MAX_BYTES, Settlements

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from policy.rules.settlement import Settlement

GRANT = Grant("id", 1, Duty.METER, "/api/chat", "llama3.1:8b", True, 1, "acme", 1, "nz_aaaaaaaaa", "epoch", 12, 100)
READ = b'{"st":200,"p":11,"c":22,"x":true,"outcome":"completed","ttft":1500000}'


@dataclass
class Settler:
    takes: bool = True
    go: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    taken: list[tuple[Grant, Settlement]] = field(default_factory=list)

    async def settle(self, grant: Grant, settlement: Settlement) -> bool:
        self.begun.set()
        await self.go.wait()
        self.taken.append((grant, settlement))
        return self.takes


@dataclass
class Observer:
    figures: list[dict[str, Any]] = field(default_factory=list)

    def metered(self, grant: Grant, prompt_tokens: int, completion_tokens: int, **more: Any) -> None:
        self.figures.append({"prompt": prompt_tokens, "completion": completion_tokens, **more})


@dataclass
class Trace:
    notes: dict[str, str | int] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    def note(self, **attributes: str | int) -> None:
        self.notes |= attributes

    def keep(self, request_id: str) -> None:
        self.kept.append(request_id)


@dataclass
class Seen:
    settler: Settler
    observer: Observer
    trace: Trace
    server: HttpChecks
    url: str


def run(scenario: Callable[[Seen, httpx.AsyncClient], Awaitable[None]], *, takes: bool = True) -> Seen:
    async def whole() -> Seen:
        settler, observer, trace = Settler(takes), Observer(), Trace()
        settler.go.set()
        settlements = Settlements(settler, observer, trace)

        async def answer(method: str, target: str, _: dict[str, str], body: bytes) -> bytes:
            return reply(await settlements.take(method, target, body), [])

        server = HttpChecks(answer, MAX_BYTES, cancels=False)
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        seen = Seen(settler, observer, trace, server, f"http://127.0.0.1:{bound.getsockname()[1]}")
        await server.start(bound)
        try:
            async with asyncio.timeout(30), httpx.AsyncClient(base_url=seen.url, trust_env=False) as client:
                await scenario(seen, client)
        finally:
            await server.stop(0)
        return seen

    return asyncio.run(whole())


def status(body: bytes, path: str = "/settle", method: str = "POST", *, takes: bool = True) -> tuple[int, Seen]:
    found = []

    async def scenario(_: Seen, client: httpx.AsyncClient) -> None:
        found.append((await client.request(method, path, content=body)).status_code)

    seen = run(scenario, takes=takes)
    return found[0], seen


def asked(grant: Grant = GRANT, read: bytes = READ) -> bytes:
    return grant.to_json().encode() + b"\n" + read


def test_a_settlement_is_taken_and_told() -> None:
    code, seen = status(asked())
    assert code == 200
    ((grant, settlement),) = seen.settler.taken
    assert grant == GRANT
    assert (settlement.prompt_tokens, settlement.completion_tokens, settlement.exact) == (11, 22, True)
    (figures,) = seen.observer.figures
    assert (figures["prompt"], figures["completion"]) == (11, 22)
    assert figures["first_token"] == 1.5
    assert figures["seconds"] > 0
    assert seen.trace.notes["tenant"] == "acme"
    assert seen.trace.kept == ["id"]


def test_a_store_that_does_not_take_it_in_time_is_told_apart() -> None:
    """202: it is kept in processor, and Envoy's log tells policy too."""
    assert status(asked(), takes=False)[0] == 202


def test_a_prompt_that_nobody_counted_is_told_as_estimated() -> None:
    _, seen = status(asked(read=b'{"st":200,"c":22,"x":false,"outcome":"cut"}'))
    assert seen.observer.figures[0]["prompt"] == GRANT.prompt_tokens
    assert seen.observer.figures[0]["first_token"] is None


def test_of_a_document_the_first_token_is_not_known() -> None:
    _, seen = status(asked(replace(GRANT, stream=False)))
    assert seen.observer.figures[0]["first_token"] is None


def test_where_nothing_was_reserved_nothing_is_settled() -> None:
    code, seen = status(asked(replace(GRANT, epoch="")))
    assert (code, seen.settler.taken) == (200, [])
    assert len(seen.observer.figures) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\n", READ, asked().replace(b"\n", b""), b"\n" + READ, GRANT.to_json().encode() + b"\n",
        asked(read=b"{}"), asked(read=b"[]"), asked(read=READ + b"\n" + READ), b"{}\n" + READ, b"[]\n" + READ,
        b'"grant"\n' + READ, b"\xff\xfe\n" + READ, asked(read=b"\xff"), b"null\n" + READ,
        json.dumps({**json.loads(GRANT.to_json()), "duty": "else"}).encode() + b"\n" + READ,
        asked(read=READ.replace(b"22", b"-22")), asked(read=READ.replace(b"22", b"9" * 400)),
    ],
)  # fmt: skip
def test_what_is_no_settlement_is_refused_and_settles_nothing(body: bytes) -> None:
    code, seen = status(body)
    assert code == 400
    assert seen.settler.taken == []
    assert seen.observer.figures == []


@pytest.mark.parametrize(("method", "path"), [("GET", "/settle"), ("POST", "/"), ("POST", "/settle/"), ("PUT", "/x")])
def test_there_is_nothing_else(method: str, path: str) -> None:
    code, seen = status(asked(), path, method)
    assert (code, seen.settler.taken) == (404, [])


def test_it_says_that_it_lives() -> None:
    assert status(b"", "/alive", "GET")[0] == 200


def test_a_body_that_is_too_large_is_not_read_to_its_end() -> None:
    with pytest.raises(httpx.TransportError):
        status(asked() + b" " * MAX_BYTES)


def test_an_envoy_that_leaves_does_not_stop_a_settlement() -> None:
    async def scenario(seen: Seen, client: httpx.AsyncClient) -> None:
        seen.settler.go.clear()
        call = asyncio.ensure_future(client.post("/settle", content=asked()))
        await seen.settler.begun.wait()
        call.cancel()
        await client.aclose()
        seen.settler.go.set()
        await seen.server.stop(10)

    assert len(run(scenario).settler.taken) == 1
