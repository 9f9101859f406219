"""The commands about the shape of requests: their arguments. What they do is in `gateway.bounds_commands`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import running

if TYPE_CHECKING:
    import argparse

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def register(commands: Subparsers) -> None:
    """Add the commands to the `paddock` parser."""
    changed = _command(
        commands,
        "set-bounds",
        "change how large the parts of a tenant's requests may be; bounds not named stay as they are",
        "`paddock list-bounds` shows their names. `NAME=usual` goes back to the usual one.",
    )
    changed.add_argument("tenant", metavar="TENANT", help="the tenant's name")
    changed.add_argument(
        "bounds", nargs="+", metavar="NAME=VALUE", help="tools=1_000, template-logic=yes, operator-options=num_ctx"
    )
    shown = _command(commands, "list-bounds", "show how large the parts of requests may be, as usual or for a tenant")
    shown.add_argument("tenant", nargs="?", metavar="TENANT", help="the tenant's name")


def _command(commands: Subparsers, name: str, does: str, more: str = "") -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}. {more}")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    running.add_arguments(parser)
    parser.set_defaults(run=f"gateway.bounds_commands:{name.replace('-', '_')}", wrong=parser.error)
    return parser
