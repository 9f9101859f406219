"""Composition of the processor service: the one place that knows every part."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.config
import os
import secrets
import signal
import sys

import grpc.aio
import uvloop
from pydantic import ValidationError

from policy.rules import logs
from policy.rules.settings import listen_address
from policy.stores import redis
from policy.stores.timed import TimedCounters
from processor import memory
from processor.edge import metrics
from processor.edge.server import ExternalProcessor, handler
from processor.settings import ProcessorSettings
from processor.settling import Settling

log = logging.getLogger("processor")

GRACE_SECONDS = 5.0


async def serve(settings: ProcessorSettings) -> None:
    """Serve until SIGTERM or SIGINT; what is still to be settled then is settled first."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    counters = await redis.open_store(settings.redis_url.get_secret_value(), epoch=secrets.token_hex(8))
    observer = metrics.Metrics()
    settling = Settling(
        TimedCounters(counters, observer.store_called),
        patience=settings.settle_patience_seconds,
        observe=observer.settled,
    )
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.grpc_message_bytes),
            ("grpc.max_send_message_length", settings.grpc_message_bytes),
            ("grpc.so_reuseport", 0),
        ]
    )
    server.add_generic_rpc_handlers((handler(ExternalProcessor(settling, observer)),))
    if settings.processor_metrics_listen:
        metrics.serve(settings.processor_metrics_listen)
    try:
        async with asyncio.TaskGroup() as tasks:
            settler = tasks.create_task(settling.run(), name="settling")
            await _listen(server, listen_address(settings.processor_listen))
            log.info("serving", extra={"listen": settings.processor_listen})
            await stop.wait()
            log.info("stopping", extra={"unsettled": settling.waiting})
            await server.stop(GRACE_SECONDS)
            try:
                async with asyncio.timeout(GRACE_SECONDS):
                    await settling.drain()
            except TimeoutError:
                # Their reservations stand in the store; the sweeper settles them by estimate.
                log.error("settlements left to the sweeper", extra={"count": settling.waiting})
            settler.cancel()
    finally:
        await counters.close()


async def _listen(server: grpc.aio.Server, address: str) -> None:
    # A Unix socket belongs to this user alone from its first moment on.
    before = os.umask(0o177)
    try:
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        server.add_insecure_port(address)
        await server.start()
    finally:
        os.umask(before)


def main() -> int:
    """Run the service; the exit status."""
    try:
        settings = ProcessorSettings()
        logging.config.dictConfig(logs.config("processor", settings.log_level))
        memory.protect()
        uvloop.run(serve(settings))
    except (ValidationError, ValueError) as error:
        print(f"processor: a setting is wrong: {error}", file=sys.stderr)  # noqa: T201  # logging is not set up yet
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
