"""`paddock up` and `paddock demo`: a whole gateway on this machine, in the foreground.

Progress goes to standard error; what a script may want (the ready lines, `export PADDOCK_KEY=…`) to standard output.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

from gateway import running, upstreams
from gateway.failure import Failure
from gateway.launch import Config, Launch
from gateway.supervisor import OnDeath, Stopped

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from gateway.launch import Ready


def up(args: argparse.Namespace) -> int:
    """Run until stopped; Failure when it cannot start or a part dies."""
    named = args.upstream or os.environ.get("PADDOCK_UPSTREAMS", upstreams.DEFAULT).split(",")
    try:
        urls = tuple(dict.fromkeys(upstreams.normal(url) for url in named if url.strip()))
    except ValueError as error:
        raise Failure(f"--upstream: {error}") from error

    async def when_ready(ready: Ready) -> None:
        print(_ready_line(ready))
        print("  next        paddock create-tenant NAME --allow-all-models && paddock create-key NAME", flush=True)

    return _run_until_stopped(_config(args, urls), when_ready)


def _config(args: argparse.Namespace, urls: tuple[str, ...], *, demo: bool = False) -> Config:
    usual = running.default_data_dir()
    if demo and not os.environ.get("PADDOCK_DATA_DIR"):
        usual = usual.with_name("paddock-demo")
    return Config(
        data_dir=args.data_dir or usual,
        upstreams=urls,
        host=args.host,
        port=args.port,
        workers=args.workers,
        demo=demo,
        database_url=os.environ.get("PADDOCK_DATABASE_URL") or None,
        redis_url=os.environ.get("PADDOCK_REDIS_URL") or None,
        on_death=OnDeath.RESTART if args.restart else OnDeath.STOP,
    )


def _run_until_stopped(config: Config, when_ready: Callable[[Ready], Awaitable[None]]) -> int:
    say(f"paddock starts; its data is in {config.data_dir}")
    launch = Launch(config, say)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop)
        await launch.run(when_ready)

    def stop() -> None:
        say("\nstopping" if sys.stderr.isatty() else "stopping")
        launch.ask_to_stop()

    try:
        asyncio.run(main())
    except Stopped:
        say("stopped; nothing is left running")
    return 0


def _ready_line(ready: Ready) -> str:
    return (
        f"ready in {ready.seconds:.1f} s: {ready.running.url}\n"
        f"  logs        {ready.supervisor.log('*')}\n"
        "  stop        Ctrl-C"
    )


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)
