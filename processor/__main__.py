"""Composition of the processor service: the one place that knows every part."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import logging.config
import secrets
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import uvloop
from pydantic import ValidationError

from policy.admission.discovery import Discovery
from policy.admission.evaluate import Evaluator
from policy.admission.upstreams import Access
from policy.edge import http_server
from policy.edge.http_check import HttpChecks
from policy.edge.http_codec import reply
from policy.edge.listening import listen
from policy.edge.traced import tracing_to
from policy.rules import logs
from policy.rules.decision import Deny, Reason
from policy.rules.faults import StoreDown
from policy.rules.settings import listen_address
from policy.rules.tiers import Tier, parse_upstreams
from policy.stores import redis
from policy.stores.timed import TimedCounters
from processor import memory
from processor.edge import metrics
from processor.edge.server import ExternalProcessor, handler
from processor.edge.settle import MAX_BYTES, SETTLE, Settlements
from processor.edge.tracing import TracedCounters, TracedExchanges
from processor.envelopes import Envelopes, Limits
from processor.replays import Replays
from processor.server_key_files import ServerKeyError
from processor.server_keys import ServerKeys, read_passphrase
from processor.settings import ProcessorSettings
from processor.settling import Settling

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from datetime import datetime

    from policy.edge.tracing import Tracing
    from policy.rules.settlement import Known
    from policy.stores.timed import Observe

log = logging.getLogger("processor")

SETTLE_SECONDS = 5.0
FIRST_LOOK_SECONDS = 2.0  # how long the first envelope may wait for what the upstreams have


async def serve(settings: ProcessorSettings, protection: memory.Protection) -> None:
    """Serve until SIGTERM or SIGINT; what is still to be settled then is settled first."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    counters = await redis.open_store(settings.redis_url.get_secret_value(), epoch=secrets.token_hex(8))
    observer = metrics.Metrics()
    tracing = tracing_to(settings.otlp_endpoint, "paddock-processor")
    observe = tracing.observe(observer.store_called) if tracing else observer.store_called
    timed = TimedCounters(counters, observe)
    settling = Settling(
        TracedCounters(timed, tracing) if tracing else timed,
        patience=settings.settle_patience_seconds,
        observe=observer.settled,
    )
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.grpc_message_bytes),
            ("grpc.max_send_message_length", settings.grpc_message_bytes),
            ("grpc.so_reuseport", 0),
        ],
        interceptors=[tracing.interceptor()] if tracing else None,
    )
    sealing = _sealing(settings, counters, observer, protection, observe) if settings.server_key_dir else None
    exchanges = TracedExchanges(observer, tracing) if tracing else observer
    envelopes = None if sealing is None else sealing.envelopes
    server.add_generic_rpc_handlers((handler(ExternalProcessor(settling, exchanges, envelopes)),))
    if settings.processor_metrics_listen:
        metrics.serve(settings.processor_metrics_listen)
    try:
        async with asyncio.TaskGroup() as tasks:
            parts = [tasks.create_task(settling.run(), name="settling")]
            await listen(server, listen_address(settings.processor_listen), settings.tls)
            edge = await _serve_edge(settings, Settlements(settling, observer, tracing), tracing)
            log.info("serving", extra={"listen": settings.processor_listen})
            if sealing is not None:  # not sooner: a first key takes a second of CPU to make
                parts += [tasks.create_task(part) for part in sealing.parts()]
            await stop.wait()
            log.info("stopping", extra={"unsettled": settling.waiting})
            await asyncio.sleep(settings.drain_seconds)
            await server.stop(settings.grace_seconds)
            await edge.stop(settings.grace_seconds)
            try:
                async with asyncio.timeout(SETTLE_SECONDS):
                    await settling.drain()
            except TimeoutError:
                # Their reservations stand in the store; the sweeper settles them by estimate.
                log.error("settlements left to the sweeper", extra={"count": settling.waiting})
            for part in parts:
                part.cancel()
    finally:
        if envelopes is not None:
            envelopes.close()
        await counters.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)


async def _serve_edge(settings: ProcessorSettings, settlements: Settlements, tracing: Tracing | None) -> HttpChecks:
    """Where Envoy's own meter settles."""
    replies = {status: reply(status, []) for status in (200, 202, 400, 404)}

    async def answer(method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
        traceparent = headers.get("traceparent", "")
        if tracing is None or not traceparent or target != SETTLE:
            return replies[await settlements.take(method, target, body)]
        with tracing.call("Settle", traceparent):
            return replies[await settlements.take(method, target, body)]

    bound = http_server.bind(listen_address(settings.processor_edge_listen))
    return await HttpChecks(answer, MAX_BYTES, cancels=False).start(bound, settings.tls)


class _NoKeys:
    """What comes here had its key checked by policy."""

    async def authenticate(self, presented: str | None, address: str, now: datetime) -> Deny:
        return Deny(Reason.FAULT)


class _NoSeeds:
    """Policy counted this request a moment ago, so its counters are there, unless the store has just lost them."""

    async def read(self, tenant_id: int, key_id: int) -> Known:
        raise StoreDown("the counters were lost after the key was checked")


@dataclass(frozen=True, slots=True)
class _Sealing:
    """Everything that encrypted requests need besides what all need."""

    envelopes: Envelopes
    replays: Replays
    discoveries: tuple[Discovery, ...]

    def parts(self) -> list[Coroutine[None, None, None]]:
        return [self.envelopes.run(), self.replays.run(), *(discovery.run() for discovery in self.discoveries)]


def _sealing(
    settings: ProcessorSettings,
    store: redis.RedisStore,
    observer: metrics.Metrics,
    protection: memory.Protection,
    observe: Observe,
) -> _Sealing:
    """ServerKeyError or ValueError where a setting is wrong."""
    secret = settings.server_key_passphrase
    passphrase = read_passphrase(
        None if secret is None else secret.get_secret_value(), settings.server_key_passphrase_file
    )
    own = parse_upstreams(settings.tier_upstreams)
    usual = tuple(url.strip() for url in settings.upstreams.split(",") if url.strip())
    access = Access(settings.upstream_key.get_secret_value(), settings.upstream_ca_file)
    found = {
        urls: Discovery(urls, interval=settings.discovery_interval_seconds, access=access)
        for urls in {usual, *own.values()}
    }  # a tier sees the models of its own machines alone
    counters = TimedCounters(store, observe)
    judges = {
        tier: Evaluator(_NoKeys(), found[own.get(tier, usual)], counters, _NoSeeds(), settings.default_max_tokens)
        for tier in Tier
    }
    replays = Replays(store, window_seconds=settings.replay_window_seconds)
    first = asyncio.Event()

    async def looked() -> None:
        if not first.is_set():
            with contextlib.suppress(TimeoutError):  # a machine that hangs must not keep the rest waiting
                async with asyncio.timeout(FIRST_LOOK_SECONDS):
                    await asyncio.gather(*(discovery.first() for discovery in found.values()))
            first.set()

    envelopes = Envelopes(
        ServerKeys(Path(settings.server_key_dir), passphrase),
        judges,
        replays,
        protection,
        observer,
        limits=Limits(settings.max_envelope_bytes, settings.envelope_threads, settings.envelopes_waiting),
        pinned=frozenset(own),
        looked=looked,
    )
    return _Sealing(envelopes, replays, tuple(found.values()))


def main() -> int:
    """Run the service; the exit status."""
    try:
        settings = ProcessorSettings()
        logging.config.dictConfig(logs.config("processor", settings.log_level))
        protection = memory.protect()  # before the first key is read
        if settings.server_key_dir:
            for missing in protection.missing:
                log.warning("memory is not protected", extra={"missing": missing})
        # What was imported lives as long as the process: looking through it at every collection is lost work.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        uvloop.run(serve(settings, protection))
    except (ValidationError, ValueError, ServerKeyError) as error:
        print(f"processor: a setting is wrong: {error}", file=sys.stderr)  # noqa: T201  # logging is not set up yet
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
