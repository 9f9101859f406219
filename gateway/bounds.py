"""The commands about the shape of requests: their arguments. What they do is in `gateway.bounds_commands`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gateway.command_line import command

if TYPE_CHECKING:
    from gateway.command_line import Subparsers

_command = partial(command, "gateway.bounds_commands")


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
