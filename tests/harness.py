"""Whole gateways for tests: real Envoy, PostgreSQL, Valkey and services on free ports, before a real HTTP upstream.

A `Gateway` is one instance with a demo upstream of its own. Most tests share one per worker process (the `gateway`
fixture) and keep out of each other's way by making a tenant each; tests that kill parts start their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

import asyncpg
import httpx
import redis

from gateway import cli
from gateway.instance import Instance
from gateway.launch import Config
from gateway.supervisor import OnDeath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")
MODELS = ("llama3.1:8b", "mistral:7b", "nomic-embed-text:latest")


class Upstream:
    """The demo Ollama as a process of its own. What it served is the truth that the ledger is held against."""

    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        """Start it, on the port it had before where it had one."""
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.demo", "--host", "127.0.0.1", "--port", str(self.port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r":(\d+)\s*$", line)
        assert found, f"the demo upstream said {line!r}"
        self.port = int(found[1])
        self._process = process
        return self

    def stop(self) -> None:
        """Kill it: connections break as they do when a machine dies."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def served(self, request_id: str | None = None) -> list[dict[str, Any]]:
        """Generations as the upstream counted them; of one request, or all."""
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/__demo/served").json()
        return [one for one in found if request_id is None or one["request_id"] == request_id]

    def after(self, earlier: list[dict[str, Any]], outcome: str) -> list[dict[str, Any]]:
        """Those that were served after `earlier`, and have come to this: what others left running is none of them."""
        names = {one["request_id"] for one in earlier}
        return [one for one in self.served() if one["request_id"] not in names and one["outcome"] == outcome]

    def requests(self) -> list[dict[str, Any]]:
        """Every request that reached it."""
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/__demo/requests").json()
        return found

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass
class Client:
    """One key and an HTTP client that presents it."""

    key: str
    prefix: str
    tenant: str
    http: httpx.Client

    def chat(self, text: str, *, path: str = "/api/chat", **fields: Any) -> httpx.Response:
        body = {"model": MODELS[0], "messages": [{"role": "user", "content": text}], "stream": False, **fields}
        return self.http.post(path, json=body)


@dataclass
class Gateway:
    """One running instance, its upstream, and what tests ask of both."""

    instance: Instance
    upstream: Upstream
    data_dir: Path
    _names: Iterator[int] = field(default_factory=lambda: iter(range(10**9)))
    _clients: list[httpx.Client] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.instance.url

    def paddock(self, *args: str, status: int = 0) -> Any:
        """Run a command beside the instance with --json; its document (or its error text where `status` is not 0)."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.main([*args, "--data-dir", str(self.data_dir), "--json"])
            except SystemExit as end:
                code = int(end.code or 0)
        assert code == status, f"paddock {' '.join(args)}: {code} {out.getvalue()} {err.getvalue()}"
        return json.loads(out.getvalue()) if status == 0 else err.getvalue()

    def tenant(self, *options: str) -> str:
        """A new tenant, for all models where no option names any; its name."""
        name = f"tenant-{next(self._names)}"
        if not any(option in ("--model", "--allow-all-models", "--no-models") for option in options):
            options = ("--allow-all-models", *options)
        self.paddock("create-tenant", name, *(option for option in options if option != "--no-models"))
        return name

    def client(self, tenant: str | None = None, *options: str, tenant_options: tuple[str, ...] = ()) -> Client:
        """A new key (of a new tenant where none is named) and a client for it. `options` are create-key's."""
        made = self.paddock("create-key", tenant or self.tenant(*tenant_options), *options)
        client = self.http(made["key"])
        return Client(made["key"], made["prefix"], made["tenant"], client)

    def http(self, key: str | None = None) -> httpx.Client:
        """An HTTP client of the front door, with `key` where one is given."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        client = httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)
        self._clients.append(client)
        return client

    def sql(self, query: str, *args: object) -> list[dict[str, Any]]:
        """Rows of the instance's database."""

        async def fetch() -> list[dict[str, Any]]:
            connection = await asyncpg.connect(self.instance.running.database_url)
            try:
                return [dict(row) for row in await connection.fetch(query, *args)]
            finally:
                await connection.close()

        return asyncio.run(fetch())

    def redis(self) -> redis.Redis:
        """A client of the instance's counter store."""
        return redis.Redis.from_url(self.instance.running.redis_url.replace("redis+unix", "unix"))

    def audit(self, request_id: str, *, patience: float = 30.0) -> dict[str, Any]:
        """The one audit row of a request, once Envoy's log of it is in it (and, where it was metered, its tokens)."""

        def row() -> dict[str, Any] | None:
            rows = self.sql("SELECT * FROM audit WHERE request_id = $1", request_id)
            assert len(rows) <= 1, rows
            if not rows or rows[0]["duration_us"] is None:
                return None
            metered = rows[0]["decision"] == "allowed" and rows[0]["endpoint"] in METERED
            return None if metered and rows[0]["settled_at"] is None else rows[0]

        return eventually(row, patience=patience)

    def refusals_past_rate(self) -> int:
        """Refusals that were counted and have no row of their own."""
        return self._past_rate("refusals_past_rate", 1)

    def answers_past_rate(self) -> int:
        """Answers without a key that were counted and have no row of their own."""
        return self._past_rate("answers_past_rate", 2)

    def _past_rate(self, reason: str, bars: int) -> int:
        (shared,) = self.sql("SELECT sum(requests)::bigint AS n FROM audit WHERE reason = $1", reason)
        with self.redis() as store:
            fields = [field for name in store.keys("pd:*:refused") for field in store.hgetall(name).items()]
        # Those of a minute that is not over stand in the store, beside how many have had rows.
        return (shared["n"] or 0) + sum(
            int(count) for name, count in fields if text(name)[0].isdigit() and text(name).count("|") == bars
        )

    def close(self) -> None:
        for client in self._clients:
            client.close()


METERED = frozenset(
    f"/{path}"
    for path in (
        "api/chat",
        "api/generate",
        "api/embed",
        "api/embeddings",
        "v1/chat/completions",
        "v1/chat/secure_completion",
        "v1/completions",
        "v1/embeddings",
    )
)


@contextlib.contextmanager
def running(
    directory: Path,
    *,
    restart: bool = False,
    workers: int = 1,
    threads: int | None = None,
    log_bytes: int = 64 << 20,
    metering: str = "envoy",
    grpc_checks: bool = False,
    **environment: str,
) -> Iterator[Gateway]:
    """A gateway of one's own below `directory`. `restart`: parts that die are started again. `metering` is of plain
    answers: by Envoy's own meter, as shipped, or by processor. `grpc_checks`: Envoy asks policy over gRPC."""
    with Upstream() as upstream:
        config = Config(
            data_dir=directory,
            upstreams=(upstream.url,),
            port=0,
            workers=workers,
            envoy_threads=threads,
            grpc_checks=grpc_checks,
            address_rate=1_000_000,  # all clients of a test have one address
            announce=False,
            metering=metering,
            on_death=OnDeath.RESTART if restart else OnDeath.LEAVE,
            log_bytes=log_bytes,
            environment={
                "PADDOCK_DISCOVERY_INTERVAL_SECONDS": "1",
                "PADDOCK_REFUSAL_ROWS": "1000000",  # and a test looks for rows that another's flood would take
                **environment,
            },
        )
        with Instance(config) as instance:
            gateway = Gateway(instance, upstream, directory)
            try:
                yield gateway
            finally:
                gateway.close()


def eventually(look: Callable[[], T | None], *, patience: float = 30.0, every: float = 0.05) -> T:
    """What `look` finds, as soon as that is something; AssertionError after `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {patience} s"
        time.sleep(every)


def text(name: str | bytes) -> str:
    """A name as the store gives it."""
    return name if isinstance(name, str) else name.decode()


def request_id(response: httpx.Response) -> str:
    found: str = response.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", found)
    return found
