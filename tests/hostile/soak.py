"""A day of requests in minutes: what the parts hold after it is what they held before.

A day at one request every two seconds is 43,200. Clients send them as fast as they are answered, of every kind that
leaves something behind if it is dropped: streams, streams whose client leaves, wrong keys, envelopes, repeated
envelopes, sessions, keys that are made and revoked, malformed bodies. At every tenth of the way the clients pause
until nothing is reserved and nothing waits for the ledger; then memory and file descriptors are read.

Memory may grow in the first tenths, while caches fill and allocators settle; after that it is to be flat.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import random
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from policy.rules import keys
from tests.chaos.storm import settle_down
from tests.harness import MODELS, Gateway, eventually
from tests.hostile.processes import MIB, Held, held
from tests.sealing import PATH, Sender, chat, seal, senders

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

DAY = 43_200  # requests: one every two seconds
STEPS = 10
SETTLED = 3  # tenths after which memory is to be flat
GROWTH_MAX = 24 * MIB  # a part, from there to the end
DESCRIPTORS_MAX = 12  # more than after the first tenths, which fill the pools: those breathe
_ORIGIN = "https://soak.example"


@dataclass
class Soak:
    """One gateway under mixed requests."""

    gateway: Gateway
    seed: int
    clients: int = 12
    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    samples: list[dict[str, Held]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def run(self, requests: int, steps: int = STEPS) -> None:
        """Send them all, in steps."""
        began = time.monotonic()
        sender = senders(self.gateway)()
        self._prepare(sender)
        self.rest()
        for step in range(steps):
            asyncio.run(self._step(sender, range(step * requests // steps, (step + 1) * requests // steps)))
            self._operate()
            self.rest()
        self.seconds = time.monotonic() - began

    def rest(self) -> None:
        """Wait until nothing is under way, and read what is held."""
        books = settle_down(self.gateway, patience=120)
        if books.open or books.waiting:
            self.left.append(f"{books.open} reservations, {books.waiting} events")
        self.samples.append(held(self.gateway))

    def _prepare(self, sender: Sender) -> None:
        self.gateway.paddock("allow-sessions", sender.client.tenant, "--origin", _ORIGIN)
        asks = {"origin": _ORIGIN, "access-control-request-method": "POST"}
        eventually(lambda: self.gateway.http().options("/session", headers=asks).status_code == 204)

    def _operate(self) -> None:
        """What an operator does in between: a key is made, used and taken back."""
        client = self.gateway.client()
        self.answers[f"new key {client.chat('one').status_code}"] += 1
        self.gateway.paddock("revoke-key", client.prefix)
        eventually(lambda: client.chat("one").status_code == 401)
        self.answers["revoked key 401"] += 1

    async def _step(self, sender: Sender, numbers: range) -> None:
        rest = iter(numbers)
        limits = httpx.Limits(max_connections=self.clients * 2)
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(
                httpx.AsyncClient(base_url=self.gateway.url, timeout=60, limits=limits, trust_env=False)
            )
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            for _ in range(self.clients):
                tasks.create_task(self._client(http, sender, rest))

    async def _client(self, http: httpx.AsyncClient, sender: Sender, rest: Iterator[int]) -> None:
        for number in rest:
            drawn = random.Random(self.seed * 1_000_003 + number)
            (kind,) = drawn.choices(tuple(_KINDS), [weight for weight, _ in _KINDS.values()])
            self.answers[f"{kind} {await _KINDS[kind][1](http, sender, drawn)}"] += 1

    def faults(self) -> Iterator[str]:
        """What is wrong, in words."""
        yield from self.left
        for answer, times in self.answers.items():
            if answer.split()[-1] not in _EXPECTED.get(answer.rsplit(" ", 1)[0], ("200",)):
                yield f"{times} times {answer}"
        base, last = self.samples[min(SETTLED, len(self.samples) - 2)], self.samples[-1]
        for part in last:
            grown = last[part].rss - base[part].rss
            if part != "postgres" and grown > GROWTH_MAX:
                yield f"{part} grew by {grown / MIB:.1f} MiB"
            more = last[part].descriptors - base[part].descriptors
            if part != "postgres" and more > DESCRIPTORS_MAX:
                yield f"{part} holds {more} more descriptors"

    def report(self) -> dict[str, Any]:
        return {
            "requests": sum(self.answers.values()),
            "seconds": round(self.seconds, 1),
            "answers": dict(sorted(self.answers.items())),
            "rss_mib": {part: [round(one[part].rss / MIB) for one in self.samples] for part in self.samples[0]},
            "descriptors": {part: [one[part].descriptors for one in self.samples] for part in self.samples[0]},
        }


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def _chat(http: httpx.AsyncClient, sender: Sender, drawn: random.Random) -> str:
    body = {**chat(f"a !tokens={drawn.randint(1, 5)}"), "stream": False}
    return str((await http.post("/api/chat", json=body, headers=_bearer(sender.client.key))).status_code)


async def _stream(http: httpx.AsyncClient, sender: Sender, drawn: random.Random) -> str:
    path = drawn.choice(("/api/chat", "/v1/chat/completions"))
    body = {**chat(f"a !tokens={drawn.randint(1, 30)}"), "stream": True}
    return str((await http.post(path, json=body, headers=_bearer(sender.client.key))).status_code)


async def _abort(http: httpx.AsyncClient, sender: Sender, drawn: random.Random) -> str:
    body = {**chat("a !tokens=200 !delay=5"), "stream": True}
    async with http.stream("POST", "/api/chat", json=body, headers=_bearer(sender.client.key)) as response:
        async for _ in response.aiter_raw():
            if drawn.random() < 0.5:
                break
    return str(response.status_code)


async def _wrong_key(http: httpx.AsyncClient, sender: Sender, drawn: random.Random) -> str:
    known = drawn.random() < 0.1  # of a prefix that exists: this costs an argon2
    key = keys.mint(os.urandom).reveal()
    if known:
        body = sender.client.prefix + key[12:-6]
        key = body + keys.checksum(body)
    return str((await http.post("/api/chat", json=chat("a"), headers=_bearer(key))).status_code)


async def _malformed(http: httpx.AsyncClient, sender: Sender, drawn: random.Random) -> str:
    body = json.dumps(chat("a")).encode()[: drawn.randint(0, 40)]
    return str((await http.post("/api/chat", content=body, headers=_bearer(sender.client.key))).status_code)


async def _envelope(http: httpx.AsyncClient, sender: Sender, _: random.Random) -> str:
    headers = {**sender.headers(), **_bearer(sender.client.key)}
    package = seal(chat("a"), sender.server).bytes_
    return str((await http.post(PATH, content=package, headers=headers)).status_code)


async def _replay(http: httpx.AsyncClient, sender: Sender, _: random.Random) -> str:
    headers = {**sender.headers(), **_bearer(sender.client.key)}
    package = seal(chat("a"), sender.server).bytes_
    await http.post(PATH, content=package, headers=headers)
    return str((await http.post(PATH, content=package, headers=headers)).status_code)


async def _session(http: httpx.AsyncClient, _: Sender, drawn: random.Random) -> str:
    fingerprint = f"{drawn.getrandbits(64):x}"
    opened = await http.post("/session", json={"fingerprint": fingerprint}, headers={"origin": _ORIGIN})
    if opened.status_code != 200:
        return str(opened.status_code)
    body = {**chat("a"), "fingerprint": fingerprint}
    headers = {"origin": _ORIGIN, **_bearer(opened.json()["token"])}
    return str((await http.post("/openai/chat/completions", json=body, headers=headers)).status_code)


async def _list(http: httpx.AsyncClient, sender: Sender, _: random.Random) -> str:
    response = await http.get("/v1/models", headers=_bearer(sender.client.key))
    return str(response.status_code if len(response.json()["data"]) == len(MODELS) else "wrong")


_KINDS: dict[str, tuple[int, Callable[[httpx.AsyncClient, Sender, random.Random], Awaitable[str]]]] = {
    "chat": (30, _chat),
    "stream": (30, _stream),
    "abort": (8, _abort),
    "wrong key": (6, _wrong_key),
    "malformed": (10, _malformed),
    "envelope": (3, _envelope),
    "replay": (1, _replay),
    "session": (6, _session),
    "list": (6, _list),
}
# Sessions of one address are bounded in number. A wrong key that waits for its argon2 longer than Envoy waits for
# policy is refused by Envoy, with 503: on a busy machine some are. Everything else has one answer.
_EXPECTED = {
    "wrong key": ("401", "503"),
    "malformed": ("400",),
    "replay": ("400",),
    "session": ("200", "429"),
    "revoked key": ("401",),
}
