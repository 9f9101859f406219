"""The commands that make and change tenants and keys: their arguments. What they do is in `gateway.admin_commands`.

Whom a command is about may be given by position or by option (`create-key acme`, `create-key --tenant acme`). Only
argparse is needed here, so that help answers at once.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from gateway.argument_types import ahead, duration, figure, plain
from gateway.command_line import add_tenant, command

if TYPE_CHECKING:
    from gateway.command_line import Subparsers

LIMITS = {
    "rpm": "requests in any minute",
    "tpm": "tokens in any minute",
    "concurrency": "requests under way at once",
    "budget_day": "tokens per UTC day",
    "budget_month": "tokens per UTC month",
    "budget_total": "tokens ever",
    "max_tokens": "tokens of one completion",
}
_command = partial(command, "gateway.admin_commands")


def register(commands: Subparsers) -> None:
    """Add the commands to the `paddock` parser."""
    _tenants(commands)
    _keys(commands)
    _models_and_limits(commands)


def _tenants(commands: Subparsers) -> None:
    create = _command(commands, "create-tenant", "make a tenant, which owns keys and pays for them")
    create.add_argument("name", nargs="?", metavar="NAME", help="letters, digits, '.', '_' and '-'")
    create.add_argument("--name", dest="name_option", metavar="NAME", help="the same, as an option")
    _add_models(create, "the tenant")
    _add_limits(create)
    _command(commands, "list-tenants", "show all tenants")
    for verb, does in (
        ("disable", "refuse all keys of a tenant"),
        ("enable", "let a disabled tenant's keys work again"),
    ):
        add_tenant(_command(commands, f"{verb}-tenant", does))


def _keys(commands: Subparsers) -> None:
    create = _command(
        commands,
        "create-key",
        "make a key and show it, once",
        "Without --model the key may use what its tenant may. A --model that the tenant lacks is allowed to it too.",
    )
    add_tenant(create)
    create.add_argument("--owner", type=plain, default="", metavar="TEXT", help="whose key it is")
    create.add_argument("--label", type=plain, default="", metavar="TEXT", help="what it is for")
    create.add_argument(
        "--expires",
        type=_moment,
        metavar="WHEN",
        help="a time (ISO 8601, UTC unless it says otherwise) or 12h, 30d, 8w",
    )
    _add_models(create, "the key")
    _add_limits(create)

    add_tenant(_command(commands, "list-keys", "show all keys, or those of one tenant"))
    _add_prefix(_command(commands, "disable-key", "refuse a key until it is enabled again"))
    _add_prefix(_command(commands, "enable-key", "let a disabled key work again"))
    _add_prefix(_command(commands, "revoke-key", "refuse a key for good, at once"))
    rotate = _command(
        commands,
        "rotate-key",
        "make a key like another, which stays good for a while",
        "The new key has the owner, label, expiry, limits and models of the old; both are good until the grace ends. "
        "Limits and budgets hold for the two together: what the old key used stays used.",
    )
    _add_prefix(rotate)
    rotate.add_argument(
        "--grace",
        type=ahead,
        default=timedelta(hours=24),
        metavar="TIME",
        help="how long the old key stays good: 0s, 30m, 24h, 7d (default: 24h)",
    )


def _models_and_limits(commands: Subparsers) -> None:
    for verb, does, everything in (
        ("allow", "let a tenant or a key use models", "all models there are; for a key: all its tenant may use"),
        ("deny", "take models from a tenant or a key", "all of them"),
    ):
        parser = _command(commands, f"{verb}-model", does)
        parser.add_argument(
            "names", nargs="*", metavar="TENANT MODEL", help="a tenant (unless --tenant or --key is given), then models"
        )
        _add_whom(parser)
        parser.add_argument("--model", action="append", default=[], metavar="MODEL", help="a model; may be repeated")
        parser.add_argument("--all", "--allow-all-models", dest="all_models", action="store_true", help=everything)
    limits = _command(
        commands, "set-limits", "change what a tenant or a key may spend; limits not named stay as they are"
    )
    limits.add_argument("whom", nargs="?", metavar="TENANT|PREFIX", help="a tenant's name or a key's prefix")
    _add_whom(limits)
    _add_limits(limits, removable=True)


def _add_prefix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prefix", nargs="?", metavar="PREFIX", help="the first 12 characters of the key, never all of it"
    )
    parser.add_argument("--key", "--prefix", dest="prefix_option", metavar="PREFIX", help="the same, as an option")


def _add_whom(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenant", dest="tenant_option", metavar="NAME", help="the tenant's name")
    parser.add_argument("--key", dest="prefix_option", metavar="PREFIX", help="the first 12 characters of a key")


def _add_models(parser: argparse.ArgumentParser, who: str) -> None:
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--model", action="append", metavar="MODEL", help=f"a model {who} may use; may be repeated")
    models.add_argument("--allow-all-models", action="store_true", help="whatever models there are, now and later")


def _add_limits(parser: argparse.ArgumentParser, *, removable: bool = False) -> None:
    group = parser.add_argument_group("limits", "`none` removes a limit." if removable else None)
    for name, meaning in LIMITS.items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=figure(name, removable),
            default=argparse.SUPPRESS,  # absent is not None: None removes the limit
            metavar="N",
            help=meaning,
        )


def _moment(text: str) -> datetime:
    """A time from now, or a moment as ISO 8601; where that has no offset it is UTC."""
    now = datetime.now(UTC)
    try:
        span = duration(text)
    except argparse.ArgumentTypeError:
        pass  # then it is a moment
    else:
        ahead(text)
        return now + span
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a time like 30d nor one like 2030-01-31T12:00") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= now:
        raise argparse.ArgumentTypeError(f"{text} is past")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise argparse.ArgumentTypeError(f"{text!r} is further ahead than there are dates") from None
