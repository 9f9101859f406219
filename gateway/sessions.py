"""The commands about browser sessions: their arguments. What they do is in `gateway.session_commands`.

Only argparse is needed here, so that help answers at once.
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from gateway import admin
from gateway.argument_types import count, duration, figure, plain
from gateway.command_line import add_tenant, command

if TYPE_CHECKING:
    from gateway.command_line import Subparsers

_command = partial(command, "gateway.session_commands")
_ENDPOINTS = ("chat", "completions", "embeddings", "models")
# Options beginning with these words are limits of the scope.
SCOPES = {
    "session": ("", "what one session may spend"),
    "fingerprint": ("fingerprint_", "what one client fingerprint may spend, in all its sessions"),
    "address": ("address_", "what one client address may spend, in all its sessions"),
    "together": ("all_", "what all sessions of the tenant may spend together"),
}
LIMITS = ("rpm", "tpm", "concurrency", "budget_day", "budget_month", "budget_total")
_SHORT = ("rpm", "tpm", "concurrency", "budget_day")  # longer periods are not kept for who can be anybody
COUNTS = {
    "max_per_fingerprint": (1000, "live sessions of one client fingerprint (5)"),
    "max_live": (1_000_000, "live sessions of the tenant (10000)"),
    "opened_per_minute": (100_000, "sessions that one client address may open in a minute (10)"),
}


def register(commands: Subparsers) -> None:
    """Add the commands to the `paddock` parser."""
    _allow(commands)
    deny = _command(
        commands,
        "deny-sessions",
        "take browser sessions from a tenant",
        "Without --origin from all its pages. What was opened from there ends at once.",
    )
    add_tenant(deny)
    deny.add_argument("--origin", action="append", metavar="URL", help="only this origin; may be repeated")
    _keys(commands)
    _sessions(commands)


def _allow(commands: Subparsers) -> None:
    allow = _command(
        commands,
        "allow-sessions",
        "let a tenant's web pages open sessions",
        "Once allowed, the same command changes the terms: origins and models are added, limits replaced, and what is "
        "not named stays. The figures in brackets are what a new policy has. `none` removes a limit.",
    )
    add_tenant(allow)
    allow.add_argument("--origin", action="append", metavar="URL", help="of the pages, such as https://app.example.com")
    models = allow.add_mutually_exclusive_group()
    models.add_argument("--model", action="append", metavar="MODEL", help="one that sessions may use; may be repeated")
    models.add_argument("--all-models", action="store_true", help="whatever the tenant may use (this is how it begins)")
    allow.add_argument(
        "--endpoint", action="append", choices=_ENDPOINTS, help="what sessions may ask for; may be repeated (all)"
    )
    allow.add_argument("--lifetime", type=_lifetime, metavar="TIME", help="of a session: 10m, 2h; at most 24h (30m)")
    for name, choices, usual, meaning in (
        ("fingerprint", ("ignore", "observe", "enforce"), "observe", "what another fingerprint than the session's is"),
        ("signature", ("off", "legacy", "hmac"), "legacy", "whether requests are signed"),
        ("entropy", ("ignore", "require"), "ignore", "whether opening a session takes signs of a person"),
    ):
        allow.add_argument(f"--{name}-policy", choices=choices, help=f"{meaning} ({usual})")
    for name, (largest, meaning) in COUNTS.items():
        allow.add_argument(
            f"--{name.replace('_', '-')}", type=count(largest), default=argparse.SUPPRESS, metavar="N", help=meaning
        )
    for scope, (prefix, meaning) in SCOPES.items():
        group = allow.add_argument_group(meaning)
        for name in LIMITS if scope in ("session", "together") else _SHORT:
            group.add_argument(
                f"--{(prefix + name).replace('_', '-')}",
                type=figure(name, removable=True),
                default=argparse.SUPPRESS,  # absent is not None: None removes the limit
                metavar="N",
                help=admin.LIMITS[name],
            )
        if scope == "session":
            group.add_argument(
                "--max-tokens",
                type=figure("max_tokens", removable=True),
                default=argparse.SUPPRESS,
                metavar="N",
                help=admin.LIMITS["max_tokens"],
            )


def _keys(commands: Subparsers) -> None:
    create = _command(
        commands,
        "create-publishable-key",
        "make a key that a page may show: it names the tenant",
        "It is no secret. A page needs one where its origin is allowed for several tenants.",
    )
    add_tenant(create)
    create.add_argument("--label", type=plain, default="", metavar="TEXT", help="what it is for")
    revoke = _command(commands, "revoke-publishable-key", "refuse a publishable key for good, and end its sessions")
    revoke.add_argument("key", metavar="KEY", help="nzp_…, all of it")
    rotate = _command(
        commands,
        "rotate-session-key",
        "sign new sessions with a new key",
        "Sessions that live go on: the old key verifies until the last of them has ended.",
    )
    rotate.add_argument("--at-once", action="store_true", help="drop the old keys now: every session ends")


def _sessions(commands: Subparsers) -> None:
    listing = _command(commands, "list-sessions", "show who may open sessions, and which live")
    add_tenant(listing)
    listing.add_argument("--limit", type=count(10_000), default=100, metavar="N", help="live sessions shown (100)")
    revoke = _command(commands, "revoke-session", "end a session, at once and everywhere")
    revoke.add_argument("session", nargs="?", metavar="SESSION", help="ns_…, as `list-sessions` and `audit` show it")
    revoke.add_argument("--tenant", dest="all_of", metavar="TENANT", help="every session of this tenant instead")


def _lifetime(text: str) -> int:
    span = duration(text)
    if not timedelta(minutes=1) <= span <= timedelta(hours=24):
        raise argparse.ArgumentTypeError(f"{text!r} is not from 1m to 24h")
    return int(span.total_seconds())
