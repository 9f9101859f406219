"""`paddock up` and `paddock demo`: a whole gateway on this machine, in the foreground.

Progress goes to standard error; what a script may want (the ready lines, `export PADDOCK_KEY=…`) to standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from importlib.util import find_spec
from time import monotonic
from typing import TYPE_CHECKING

from gateway import running, upstreams
from gateway.envoy_tls import Certificate
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
        raise Failure(f"PADDOCK_UPSTREAMS: {error}", do="Correct it.") from error
    if not urls:
        raise Failure("PADDOCK_UPSTREAMS names no Ollama", do="Write http://HOST:PORT there, or unset it.")

    async def when_ready(ready: Ready) -> None:
        print("\n".join(_ready_lines(ready)), flush=True)

    return _run_until_stopped(replace(_config(args, urls), certificate=_certificate(args)), when_ready)


def _certificate(args: argparse.Namespace) -> Certificate | None:
    if args.tls_cert is None and args.tls_key is None:
        return None
    if args.tls_cert is None or args.tls_key is None:
        raise Failure("a certificate needs its key", do="Name both --tls-cert and --tls-key.")
    certificate = Certificate(args.tls_cert, args.tls_key)
    certificate.check()
    return certificate


def demo(args: argparse.Namespace) -> int:
    """The same with the demo upstream, a tenant and a key."""

    async def when_ready(ready: Ready) -> None:
        from gateway.demo_key import fresh_key  # the database driver is not needed for anything else here

        key = await fresh_key(ready.running.database_url, ready.running.url)
        print("\n".join(_demo_lines(ready, key)), flush=True)

    return _run_until_stopped(_config(args, (), demo=True), when_ready)


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
        address_rate=args.address_rate,
        otlp_endpoint=_otlp_endpoint(args),
        metering=args.metering,
        demo=demo,
        database_url=os.environ.get("PADDOCK_DATABASE_URL") or None,
        redis_url=os.environ.get("PADDOCK_REDIS_URL") or None,
        on_death=OnDeath.RESTART if args.restart else OnDeath.STOP,
    )


def _otlp_endpoint(args: argparse.Namespace) -> str:
    endpoint: str = args.otlp_endpoint or os.environ.get("PADDOCK_OTLP_ENDPOINT", "")
    if endpoint and find_spec("opentelemetry.sdk") is None:  # of a namespace that other packages share
        raise Failure("traces need opentelemetry-sdk", do="Install it: pip install 'paddock[tracing]'")
    return endpoint


def _run_until_stopped(config: Config, when_ready: Callable[[Ready], Awaitable[None]]) -> int:
    say(f"paddock starts; its data is in {config.data_dir}")
    launch = Launch(config, say)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:  # under nohup
                continue
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


def _ready_lines(ready: Ready) -> list[str]:
    return [
        f"ready in {monotonic() - ready.began:.1f} s: {ready.running.url}",
        "",
        "In another terminal, a tenant and a key (shown once):",
        f"  {_command()} create-tenant acme --allow-all-models",
        f"  {_command()} create-key acme",
        *_where_to_look(ready),
    ]


def _demo_lines(ready: Ready, key: str) -> list[str]:
    url = ready.running.url
    chat = {"model": "llama3.1:8b", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
    return [
        f"ready in {monotonic() - ready.began:.1f} s: {url}",
        "",
        "In another terminal, this session's key and a streamed answer:",
        "",
        f"export PADDOCK_KEY={key}",
        f"curl -N {url}/api/chat -H \"Authorization: Bearer $PADDOCK_KEY\" -d '{json.dumps(chat)}'",
        "",
        f'  models      curl -H "Authorization: Bearer $PADDOCK_KEY" {url}/api/tags',
        f"  OpenAI      base URL {url}/v1, the same key",
        f"  a web page  {url}/session/ chats without any key",
        f"  tenants     {_command()} list-tenants, list-keys, create-key demo",
        *_where_to_look(ready),
    ]


def _where_to_look(ready: Ready) -> list[str]:
    return [
        f"  health      curl {ready.running.url}/readyz",
        f"  logs        {ready.supervisor.log('*')}",
        "  stop        Ctrl-C",
    ]


def _command() -> str:
    """How this command was called, so that the lines shown can be copied."""
    called = sys.argv[0]
    return called if os.path.basename(called) == "paddock" else "paddock"


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)
