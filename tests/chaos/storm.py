"""The chaos ledger: many mixed requests while parts of the gateway are killed, then the books are checked.

`python -m tests.chaos.storm --seconds 60 [--seed N]` prints its seed, what it killed and what it found. The upstream
(which is not killed: it is the world, not the gateway) counts what it produced for each request id; PostgreSQL must
agree, row by row.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import redis

from tests import harness

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS = {"policy-0": 3, "policy-1": 3, "processor-0": 3, "processor-1": 3, "envoy": 2, "valkey": 1, "postgres": 1}
KINDS = {"chat": 4, "generate": 3, "openai": 4, "completion": 2, "embed": 2, "forbidden": 1, "malformed": 1}
REFUSALS = frozenset((401, 403, 413, 429, 502, 503))
TOKEN_MS = 20
# What a lost processor knew of a stream is at most one renewal old, and what was on its way to the client is not known
# to anybody: so many tokens an estimate may be off at this pace.
SLACK = 3000 // TOKEN_MS


@dataclass
class Sent:
    """One request as its client saw it."""

    kind: str
    at: float
    request_id: str = ""
    status: int = 0
    whole: bool = False  # the client has all of the answer
    left: bool = False  # the client hung up on purpose


@dataclass
class Storm:
    """Clients and a killer, both driven by one seed."""

    gateway: harness.Gateway
    seed: int
    seconds: float
    clients: int = 24
    sent: list[Sent] = field(default_factory=list)
    killed: list[tuple[float, str]] = field(default_factory=list)

    def run(self) -> None:
        """Storm for `seconds`, then let the parts come back."""
        key = self.gateway.client()
        stop = threading.Event()
        killer = threading.Thread(target=self._kill, args=(random.Random(self.seed), stop))
        killer.start()
        try:
            asyncio.run(self._drive(key.key))
        finally:
            stop.set()
            killer.join()

    def _kill(self, random_: random.Random, stop: threading.Event) -> None:
        while not stop.wait(random_.uniform(0.5, 2.5)):
            (part,) = random_.choices(tuple(PARTS), tuple(PARTS.values()))
            if part in self.gateway.instance.pids():
                self.killed.append((time.time(), part))
                with contextlib.suppress(KeyError, ProcessLookupError):  # it died of another part's death just now
                    self.gateway.instance.kill(part)

    async def _drive(self, key: str) -> None:
        end = time.monotonic() + self.seconds
        limits = httpx.Limits(max_connections=self.clients * 2)
        headers = {"authorization": f"Bearer {key}"}
        async with (
            httpx.AsyncClient(base_url=self.gateway.url, headers=headers, timeout=20, limits=limits) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for number in range(self.clients):
                tasks.create_task(self._one_client(client, random.Random(self.seed * 1000 + number), end))

    async def _one_client(self, client: httpx.AsyncClient, random_: random.Random, end: float) -> None:
        while time.monotonic() < end:
            await self._one_request(client, random_)
            await asyncio.sleep(random_.uniform(0, 0.05))

    async def _one_request(self, client: httpx.AsyncClient, random_: random.Random) -> None:
        kind, path, body = self._draw(random_)
        sent = Sent(kind, time.time())
        self.sent.append(sent)
        leave_after = random_.randint(1, 5) if random_.random() < 0.15 else None
        try:
            async with client.stream("POST", path, json=body) as response:
                sent.request_id, sent.status = response.headers.get("x-request-id", ""), response.status_code
                pieces = 0
                async for _ in response.aiter_raw():
                    pieces += 1
                    if pieces == leave_after:
                        sent.left = True
                        return
                sent.whole = True
        except httpx.HTTPError:
            pass
        if not sent.whole or sent.status >= 400:
            await asyncio.sleep(0.1)  # as a client does that was told to come back

    @staticmethod
    def _draw(random_: random.Random) -> tuple[str, str, dict[str, Any]]:
        words = " ".join(random_.choice(("alpha", "beta", "gamma")) for _ in range(random_.randint(1, 30)))
        text = f"{words} !tokens={random_.randint(1, 60)} !delay={TOKEN_MS}"
        message = [{"role": "user", "content": text}]
        model = random_.choice(("llama3.1:8b", "mistral:7b"))
        stream = random_.random() < 0.7
        bodies: dict[str, tuple[str, dict[str, Any]]] = {
            "chat": ("/api/chat", {"model": model, "messages": message, "stream": stream}),
            "generate": ("/api/generate", {"model": model, "prompt": text, "stream": stream}),
            "openai": ("/v1/chat/completions", {"model": model, "messages": message, "stream": stream}),
            "completion": ("/v1/completions", {"model": model, "prompt": text, "stream": stream}),
            "embed": ("/api/embed", {"model": "nomic-embed-text", "input": [words, words]}),
            "forbidden": ("/api/chat", {"model": "not-there", "messages": message}),
            "malformed": ("/api/chat", {"model": model, "messages": "none"}),
        }
        (kind,) = random_.choices(tuple(KINDS), tuple(KINDS.values()))
        return kind, *bodies[kind]


@dataclass
class Books:
    """What the ledger, the store and the upstream say when the storm is over."""

    rows: dict[str, list[dict[str, Any]]]
    served: dict[str, list[dict[str, Any]]]
    daily: int
    counter: int
    open: int
    waiting: int
    counted: int  # refusals past the rate of an address, which share a row for each minute


def settle_down(gateway: harness.Gateway, patience: float = 60.0) -> Books:
    """Wait until nothing is reserved and nothing waits for the ledger; then read all the books."""
    upstream = collections.defaultdict(list)
    deadline = time.monotonic() + patience
    while True:
        try:
            store = gateway.redis()
            names = [harness.text(name) for name in store.keys("pd:*")]
            open_ = sum(store.hlen(name) for name in names if name.endswith(":res"))
            waiting = sum(store.xlen(name) for name in names if name.endswith(":ev"))
            running = [one for one in gateway.upstream.served() if one["outcome"] == "running"]
            if (open_, waiting) == (0, 0) and not running:
                time.sleep(1.0)  # the access log is flushed every 0.2 s, and a settlement may still be on its way
                if not any(store.xlen(name) for name in names if name.endswith(":ev")):
                    break
        except (OSError, redis.RedisError):
            pass  # the store is on its way back
        assert time.monotonic() < deadline, f"still {open_} reservations open and {waiting} events waiting"
        time.sleep(0.5)
    for one in gateway.upstream.served():
        upstream[one["request_id"]].append(one)
    rows = collections.defaultdict(list)
    for row in gateway.sql("SELECT * FROM audit WHERE requests = 1"):
        rows[row["request_id"]].append(row)
    daily = gateway.sql("SELECT sum(prompt_tokens + completion_tokens)::bigint AS tokens FROM usage_daily")
    counter = sum(int(store.hget(name, "tot") or 0) for name in names if ":t:" in name)
    return Books(
        dict(rows), dict(upstream), daily[0]["tokens"] or 0, counter, open_, waiting, gateway.refusals_past_rate()
    )


def check(storm: Storm, books: Books) -> Iterator[str]:
    """Each thing that is wrong with the books, in words."""
    for request_id, rows in books.rows.items():
        if len(rows) != 1:
            yield f"{request_id} has {len(rows)} audit rows"
    total = sum(
        (row["prompt_tokens"] or 0) + (row["completion_tokens"] or 0) for rows in books.rows.values() for row in rows
    )
    if not total == books.daily == books.counter:
        yield f"audit says {total} tokens, usage {books.daily}, the counters {books.counter}"
    if books.open or books.waiting:
        yield f"{books.open} reservations and {books.waiting} events are left"
    clients = {sent.request_id: sent for sent in storm.sent if sent.request_id}
    for request_id, served in books.served.items():
        yield from _check_served(request_id, served, books.rows.get(request_id, []), clients.get(request_id))
    missing = [one for name, one in clients.items() if name not in books.rows and not _excused(storm, one)]
    unwritten = [one for one in missing if one.status not in REFUSALS]
    # While parts stay down for long, clients that ask again and again are refused past the rate.
    if len(missing) - len(unwritten) > books.counted:
        yield f"{len(missing) - len(unwritten)} refusals have no audit row, and {books.counted} share one"
        unwritten = missing
    for sent in unwritten:
        yield f"{sent.request_id} ({sent.kind}, {sent.status}) has no audit row"


def _check_served(
    request_id: str, served: list[dict[str, Any]], rows: list[dict[str, Any]], sent: Sent | None
) -> Iterator[str]:
    if len(rows) != 1:
        yield f"{request_id} reached the upstream and has {len(rows)} rows"
        return
    row = rows[0]
    if row["settled_at"] is None:
        yield f"{request_id} reached the upstream and was never settled"
        return
    truth = served[-1]
    exact = (row["prompt_tokens"], row["completion_tokens"]) == (truth["prompt_tokens"], truth["completion_tokens"])
    if sent is not None and sent.whole and sent.status == 200:
        if not exact or row["estimated"]:
            yield f"{request_id} was answered in full: {_tokens(row)} recorded, {_tokens(truth)} produced ({sent.kind})"
    elif not row["estimated"]:
        if not exact and truth["outcome"] == "completed":
            yield f"{request_id} claims to be exact: {_tokens(row)} recorded, {_tokens(truth)} produced"
    elif abs(row["completion_tokens"] - truth["completion_tokens"]) > SLACK:
        yield f"{request_id} is estimated too far off: {_tokens(row)} recorded, {_tokens(truth)} produced"


def _tokens(counts: dict[str, Any]) -> str:
    return f"{counts['prompt_tokens']}+{counts['completion_tokens']}"


def _excused(storm: Storm, sent: Sent) -> bool:
    """A refusal that only the access log tells of is lost with an Envoy or a policy killed in that moment: what nobody
    was charged for, and no decision of policy's, may be. See the explanation of the ledger."""
    return sent.status in REFUSALS and any(
        part.startswith(("envoy", "policy", "valkey")) and -2.0 < at - sent.at < 3.0 for at, part in storm.killed
    )


def report(storm: Storm, books: Books, wrong: list[str]) -> str:
    statuses = collections.Counter(sent.status for sent in storm.sent)
    kills = collections.Counter(part for _, part in storm.killed)
    return json.dumps(
        {
            "seed": storm.seed,
            "requests": len(storm.sent),
            "statuses": {str(status): count for status, count in sorted(statuses.items())},
            "in_full": sum(sent.whole and sent.status == 200 for sent in storm.sent),
            "kills": dict(sorted(kills.items())),
            "reached_upstream": len(books.served),
            "tokens": books.daily,
            "estimated": sum(bool(row["estimated"]) for rows in books.rows.values() for row in rows),
            "wrong": len(wrong),
        },
        indent=2,
    )


def main() -> int:
    """Run a storm from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to storm (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="repeat the kills and requests of an earlier run")
    parser.add_argument("--clients", type=int, default=24, help="clients at once (default: %(default)s)")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="paddock-chaos-") as directory,
        harness.running(Path(directory) / "data", restart=True, workers=2) as gateway,
    ):
        storm = Storm(gateway, seed, args.seconds, args.clients)
        storm.run()
        books = settle_down(gateway)
        wrong = list(check(storm, books))
        print(report(storm, books, wrong))
        for line in wrong[:50]:
            print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
