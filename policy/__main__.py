"""Composition of the policy service: the one place that knows every part.

Everything runs in one task group on one event loop; a part that ends takes the process down, and whoever supervises it
starts a new one. SIGTERM lets calls under way finish.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import logging.config
import secrets
import signal
import sys
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import uvloop
from pydantic import ValidationError

from policy.admission import standing
from policy.admission.discovery import Discovery
from policy.admission.evaluate import Evaluator
from policy.admission.gate import Gate
from policy.admission.hashing import Hashing
from policy.admission.journal import Journal
from policy.admission.keyring import Keyring
from policy.admission.ledger import Ledger
from policy.admission.recovery import Recovery
from policy.admission.seeding import Seeds
from policy.admission.session_book import SessionBook
from policy.admission.sessions import Sessions
from policy.admission.upstreams import Access
from policy.edge import http_server
from policy.edge.endpoints import Endpoints
from policy.edge.http_check import HttpChecks, checks
from policy.edge.listening import listen
from policy.edge.metrics import Metrics
from policy.edge.readiness import Readiness
from policy.edge.server import AccessLog, Authorization, handlers
from policy.edge.traced import tracing_to
from policy.rules import logs
from policy.rules.faults import DatabaseDown
from policy.rules.session_token import Secret
from policy.rules.settings import listen_address
from policy.rules.speeds import Speeds
from policy.settings import PolicySettings
from policy.stores import redis
from policy.stores.access_file import AccessFile
from policy.stores.ledger_postgres import LedgerTables, seeds
from policy.stores.migrate import upgrade
from policy.stores.postgres import Postgres
from policy.stores.recovery_postgres import RecoveryTables
from policy.stores.sessions_postgres import SessionTables
from policy.stores.sessions_redis import SessionCounters
from policy.stores.timed import TimedCounters, TimedKeys, TimedRows, timed
from processor.server_key_files import ServerKeyError, read_public  # a file format: nothing that opens anything

if TYPE_CHECKING:
    from policy.rules.settlement import Known

log = logging.getLogger("policy")

FIRST_LOOK_SECONDS = 2.0  # how long the first request may wait for the keys, and for what the upstreams have


async def serve(settings: PolicySettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    migrated = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    database = settings.database_url.get_secret_value()
    pages = http_server.bind(listen_address(settings.policy_http_listen))
    edge = http_server.bind(listen_address(settings.policy_edge_listen))
    metrics = Metrics()
    observe = metrics.store_called
    async with AsyncExitStack() as stack:
        tracing = tracing_to(settings.otlp_endpoint, "paddock-policy")
        if tracing is not None:
            stack.push_async_callback(asyncio.to_thread, tracing.close)
            observe = tracing.observe(observe)
        hashing = stack.enter_context(Hashing(observer=metrics))
        postgres = await stack.enter_async_context(Postgres.open(database))
        store = await redis.open_store(
            settings.redis_url.get_secret_value(), epoch=secrets.token_hex(8), kept=settings.refusal_rows
        )
        stack.push_async_callback(store.close)
        counters = TimedCounters(store, observe)
        tables = LedgerTables(database)
        stack.push_async_callback(tables.close)

        async def read_seeds(tenant_id: int, key_id: int) -> Known:
            async with postgres.connection() as connection:
                return await seeds(connection, tenant_id, key_id, datetime.now(UTC).date())

        read_seeds_timed = timed(observe, "postgresql", "read_seeds", read_seeds)

        async def database_answers() -> bool:
            return keyring.up and migrated.is_set()

        discovery = Discovery(
            tuple(url.strip() for url in settings.upstreams.split(",") if url.strip()),
            interval=settings.discovery_interval_seconds,
            observe=metrics.upstream_polled,
            access=Access(settings.upstream_key.get_secret_value(), settings.upstream_ca_file),
        )
        keyring = Keyring(TimedKeys(postgres, observe), hashing)
        speeds = Speeds()
        ledger = Ledger(
            counters, TimedRows(tables, observe), retention_days=settings.retention_days,
            observer=metrics, speeds=speeds,
        )  # fmt: skip
        journal = Journal(counters, speeds)
        evaluator = Evaluator(
            keyring, discovery, counters, Seeds(read_seeds_timed),
            settings.default_max_tokens, metrics.tallied, bool(settings.server_key_dir) and settings.secure_inference,
        )  # fmt: skip
        book, sessions = None, None
        if settings.session_secret.get_secret_value():
            secret = Secret(settings.session_secret.get_secret_value().encode())
            days = settings.session_key_days
            book = SessionBook(SessionTables(postgres, secret), rotate_after=days * 86400 if days else None)
            sessions = Sessions(book, SessionCounters(store), evaluator, discovery, secret)
        readiness = Readiness({"postgresql": database_answers, "redis": counters.ping, "ollama": discovery.check})
        finished = AccessLog(journal, metrics)
        endpoints = Endpoints(
            version=version("paddock"),
            catalogue=discovery,
            authenticate=keyring.authenticate,
            readiness=readiness,
            exposition=metrics.exposition,
            sessions_on=lambda: book is not None and book.on,
            metrics_from=(network.strip() for network in settings.metrics_from.split(",") if network.strip()),
            server_key=partial(_public_key, Path(settings.server_key_dir)) if settings.server_key_dir else None,
        )
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.grpc_message_bytes),
                ("grpc.max_send_message_length", settings.grpc_message_bytes),
                ("grpc.so_reuseport", 0),
            ],
            interceptors=[tracing.interceptor()] if tracing else None,
        )
        gate = Gate(evaluator, sessions)
        decisions = tracing.decisions(metrics) if tracing else metrics
        server.add_generic_rpc_handlers(handlers(Authorization(gate, decisions), finished))

        async def keep_ledger() -> None:
            await _migrate(database)
            migrated.set()
            async with asyncio.TaskGroup() as kept:
                kept.create_task(ledger.run())
                if settings.access_log_file is not None:
                    told = RecoveryTables(postgres, str(settings.access_log_file))
                    source = AccessFile(settings.access_log_file)
                    kept.create_task(Recovery(source, told, told, journal, lambda: ledger.leading, metrics).run())

        async with asyncio.TaskGroup() as tasks:
            parts = [
                tasks.create_task(part, name=name)
                for name, part in (
                    ("keyring", keyring.run()),
                    ("discovery", discovery.run()),
                    ("ledger", keep_ledger()),
                    ("journal", journal.run()),
                    ("loop watch", metrics.watch_loop()),
                    ("standing", standing.watch(ledger, counters, metrics)),
                    *([("session book", book.run())] if book else []),
                )
            ]
            # Who connects is answered; so nobody may before the keys and the models are known. But an upstream that
            # hangs, or a database that is down, must not keep the rest waiting.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_LOOK_SECONDS):
                    await discovery.first()
                    await keyring.wait_up()
                    if book is not None:
                        await book.wait_up()
            paging = tasks.create_task(http_server.serve(endpoints, pages, tls=settings.tls), name="http")
            http_checks = HttpChecks(checks(gate, decisions, tracing), settings.max_request_body_bytes)
            await http_checks.start(edge, settings.tls)
            await listen(server, listen_address(settings.policy_listen), settings.tls)
            log.info(
                "serving",
                extra={
                    "listen": settings.policy_listen,
                    "edge": settings.policy_edge_listen,
                    "http": settings.policy_http_listen,
                },
            )
            await stop.wait()
            readiness.drain()
            log.info("draining", extra={"seconds": settings.drain_seconds})
            await asyncio.sleep(settings.drain_seconds)
            log.info("stopping")
            # What answers ends before what it needs.
            paging.cancel()
            finished.close()
            await asyncio.gather(server.stop(settings.grace_seconds), http_checks.stop(settings.grace_seconds))
            await asyncio.wait([paging])
            for part in parts:
                part.cancel()


def _public_key(directory: Path) -> bytes | None:
    """The current server key in PEM; None while there is none, or none that can be read."""
    try:
        keys = read_public(directory, int(time.time()))
    except ServerKeyError as error:
        log.error("no server key can be served", extra={"fault": str(error)})
        return None
    return keys[0].pem if keys else None


async def _migrate(database: str) -> None:
    """Bring the schema up to date, waiting for a database that is not there yet."""
    while True:
        try:
            if await upgrade(database):
                log.info("migrated")
            return
        except DatabaseDown as fault:
            log.warning("database not reached; trying again", extra={"fault": str(fault)[:200]})
            await asyncio.sleep(0.5)


def main() -> int:
    """Run the service; the exit status."""
    try:
        settings = PolicySettings()
        logging.config.dictConfig(logs.config("policy", settings.log_level))
        # What was imported lives as long as the process: looked through at every collection, it costs 3 % of the work.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        uvloop.run(serve(settings))
    except (ValidationError, ValueError) as error:
        print(f"policy: a setting is wrong: {error}", file=sys.stderr)  # noqa: T201  # logging is not set up yet
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
