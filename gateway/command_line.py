"""What the commands that work on an instance have in common: how they are registered, and the tenant they are about.

Only argparse is needed here, so that help answers at once: what a command does is named, and imported when it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import running

if TYPE_CHECKING:
    import argparse

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def command(module: str, commands: Subparsers, name: str, does: str, more: str = "") -> argparse.ArgumentParser:
    """The parser of a command; `module` has the function of its name, with `_` for `-`."""
    parser = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}. {more}")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    running.add_arguments(parser)
    # `wrong` ends with usage and status 2: what argparse cannot check by itself is checked by the command.
    parser.set_defaults(run=f"{module}:{name.replace('-', '_')}", wrong=parser.error)
    return parser


def add_tenant(parser: argparse.ArgumentParser) -> None:
    """The tenant, by position or by option; `given` reads it."""
    parser.add_argument("tenant", nargs="?", metavar="TENANT", help="the tenant's name")
    parser.add_argument("--tenant", dest="tenant_option", metavar="NAME", help="the same, as an option")


def given(args: argparse.Namespace, name: str, what: str, *, needed: bool = True) -> str:
    """A value that may be given by position or by option, once; "" where it is absent and not needed."""
    found = {value for value in (getattr(args, name), getattr(args, f"{name}_option")) if value is not None}
    if len(found) > 1:
        args.wrong(f"{what} was given twice, and differently")
    if not found and needed:
        args.wrong(f"{what} is missing")
    value: str = found.pop() if found else ""
    return value
