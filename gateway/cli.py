"""The `paddock` command. Exit status: 0 done, 1 failed (one clear message), 2 used wrongly.

Only argparse is imported before it is known what is wanted, so that help and mistakes answer at once: a subcommand
names its function as `module:function`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import admin, bounds, envelopes, reports, running, sessions
from gateway.argument_types import directory
from gateway.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.command_line import Subparsers


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        return _function(args.run)(args)
    except Failure as failure:
        print(f"paddock: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _function(named: str | Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    if callable(named):
        return named
    module, _, name = named.partition(":")
    function: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(module), name)
    return function


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paddock",
        description="A locked gate in front of Ollama.",
        epilog="`paddock COMMAND --help` explains each.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _register_up(commands)
    _register_demo(commands)
    _register_check(commands)
    _register_doctor(commands)
    admin.register(commands)
    bounds.register(commands)
    reports.register(commands)
    envelopes.register(commands)
    sessions.register(commands)
    return parser


def _register_up(commands: Subparsers) -> None:
    up = commands.add_parser(
        "up",
        help="run a whole gateway on this machine, in front of your Ollama",
        description="Starts PostgreSQL, Valkey, policy, processor and Envoy, and stops them all on Ctrl-C. "
        "PADDOCK_DATABASE_URL and PADDOCK_REDIS_URL replace the embedded stores.",
    )
    up.add_argument(
        "--upstream",
        action="append",
        type=_upstream,
        metavar="URL",
        help="an Ollama; repeat it for more (default: PADDOCK_UPSTREAMS, else http://127.0.0.1:11434)",
    )
    tls = up.add_argument_group("TLS", "Both or none. New files moved into their place are used without a restart.")
    tls.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain of the front door (PEM)")
    tls.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    _add_instance_options(up, "~/.local/share/paddock")
    up.set_defaults(run="gateway.up:up")


def _register_demo(commands: Subparsers) -> None:
    demo = commands.add_parser(
        "demo",
        help="the same with a small demo Ollama, a tenant and a key: to look around",
        description="Like `paddock up`, with a demo upstream that echoes the prompt word by word. "
        "Prints a key for this session; the keys of earlier sessions are revoked.",
    )
    _add_instance_options(demo, "~/.local/share/paddock-demo")
    demo.set_defaults(run="gateway.up:demo")


def _register_check(commands: Subparsers) -> None:
    check = commands.add_parser(
        "check",
        help="prove what an edited Envoy configuration must keep",
        description="Reads envoy.yaml and clusters.yaml (the one not named is taken from beside the other, else as "
        "shipped), proves what must hold, and asks `envoy --mode validate` where Envoy is installed. One line a "
        "violation; the exit status is 1 if there is any.",
    )
    check.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: the shipped files")
    check.add_argument("--json", action="store_true", help="print one JSON document")
    check.add_argument(
        "--max-request-body-bytes",
        type=_bytes,
        metavar="N",
        help="what the services have (default: PADDOCK_MAX_REQUEST_BODY_BYTES, 262144)",
    )
    check.set_defaults(run="gateway.check.command:check")


def _register_doctor(commands: Subparsers) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="look at a deployment from end to end and say what is wrong",
        description="Asks the stores, Envoy and both services what an operator would ask. With PADDOCK_KEY also one "
        "request of one token, charged to it. Run it with the services' environment; status 1 if anything is wrong.",
    )
    doctor.add_argument("--url", metavar="URL", help="the front door (default: that of the running instance)")
    doctor.add_argument("--insecure", action="store_true", help="take any certificate of the front door")
    doctor.add_argument("--json", action="store_true", help="print one JSON document")
    running.add_arguments(doctor)
    doctor.set_defaults(run="gateway.doctor:doctor")


def _add_instance_options(parser: argparse.ArgumentParser, usual: str) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8080, help="port to listen on, 0 for any (default: %(default)s)")
    parser.add_argument(
        "--address-rate",
        type=_rate,
        metavar="N",
        help="requests a second that one client address may send before Envoy refuses them (default: as in envoy.yaml)",
    )
    parser.add_argument(
        "--data-dir",
        type=directory,
        metavar="DIR",
        help=f"where data, secrets and logs are (default: PADDOCK_DATA_DIR, {usual})",
    )
    parser.add_argument(
        "--workers", type=_workers, default=1, metavar="N", help="processes of each service (default: %(default)s)"
    )
    parser.add_argument(
        "--otlp-endpoint",
        type=_otlp,
        metavar="HOST:PORT",
        help="send traces to the OTLP/HTTP receiver of a collector (default: PADDOCK_OTLP_ENDPOINT, else none)",
    )
    parser.add_argument(
        "--metering",
        choices=("envoy", "processor"),
        default="envoy",
        help="who reads the usage of plain answers: Envoy itself, or processor, as in a mesh (default: %(default)s)",
    )
    parser.add_argument("--restart", action="store_true", help="start a part again when it dies, instead of stopping")


def _bytes(text: str) -> int:
    return _number(text, 1024, 64 * 1024 * 1024)


def _port(text: str) -> int:
    return _number(text, 0, 65535)


def _rate(text: str) -> int:
    return _number(text, 1, 1_000_000_000)


def _workers(text: str) -> int:
    return _number(text, 1, 64)


def _otlp(text: str) -> str:
    from policy.rules.settings import otlp_url  # as above

    try:
        otlp_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("PADDOCK_OTLP_ENDPOINT ")) from error
    return text


def _upstream(text: str) -> str:
    from gateway import upstreams  # imports what talks to it, which help does not need

    try:
        return upstreams.normal(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _number(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdecimal()) or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
    return int(text)


class _Version(argparse.Action):
    """Reads the package's metadata only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from importlib.metadata import version

        print(f"paddock {version('paddock')}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
