"""The commands about encrypted requests: security tiers and the server's key. What they do is in
`gateway.tier_commands` and `gateway.server_key_commands`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import running
from gateway.admin import duration

if TYPE_CHECKING:
    import argparse

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

TIERS = ("standard", "high", "maximum")


def register(commands: Subparsers) -> None:
    """Add the commands to the `paddock` parser."""
    tier = _command(
        commands,
        "set-tier",
        "say on which security tiers models are",
        "A model is on exactly the tiers named. Without a word from you every model is on `standard` alone; "
        "`paddock set-tier --all --tier standard --tier high --tier maximum` opens all tiers to all models.",
        "gateway.tier_commands:set_tier",
    )
    tier.add_argument("models", nargs="*", metavar="MODEL", help="models, by name")
    tier.add_argument(
        "--all", dest="all_models", action="store_true", help="all models that have no tiers of their own"
    )
    which = tier.add_mutually_exclusive_group(required=True)
    which.add_argument("--tier", action="append", choices=TIERS, help="a tier; may be repeated")
    which.add_argument("--none", action="store_true", help="no tier: not to be asked for in an envelope at all")
    which.add_argument("--default", action="store_true", help="forget what was said")
    _command(commands, "list-tiers", "show on which security tiers models are", "", "gateway.tier_commands:list_tiers")

    keys = "gateway.server_key_commands"
    shown = _command(
        commands,
        "server-key",
        "show the fingerprints of the keys that envelopes are sealed to",
        "The current key comes first. Clients may pin its fingerprint.",
        f"{keys}:server_key",
    )
    rotated = _command(
        commands,
        "rotate-server-key",
        "make a new server key; the one before opens envelopes for a while yet",
        "The new key is served at once. `--grace 0` ends all earlier keys now: for a key that others may know.",
        f"{keys}:rotate_server_key",
    )
    rotated.add_argument(
        "--grace",
        type=duration,
        default=timedelta(hours=24),
        metavar="TIME",
        help="how long earlier keys stay good: 0, 30m, 24h, 7d (default: 24h)",
    )
    for parser in (shown, rotated):
        parser.add_argument(
            "--server-key-dir",
            type=Path,
            metavar="DIR",
            help="where the keys are (default: PADDOCK_SERVER_KEY_DIR, else the running instance's)",
        )


def _command(commands: Subparsers, name: str, does: str, more: str, run: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}. {more}")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    running.add_arguments(parser)
    parser.set_defaults(run=run, wrong=parser.error)
    return parser
