"""The commands about encrypted requests: security tiers and the server's key. What they do is in
`gateway.tier_commands` and `gateway.server_key_commands`."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.argument_types import ahead
from gateway.command_line import command

if TYPE_CHECKING:
    from gateway.command_line import Subparsers

_tier_command = partial(command, "gateway.tier_commands")
_key_command = partial(command, "gateway.server_key_commands")
TIERS = ("standard", "high", "maximum")


def register(commands: Subparsers) -> None:
    """Add the commands to the `paddock` parser."""
    tier = _tier_command(
        commands,
        "set-tier",
        "say on which security tiers models are",
        "A model is on exactly the tiers named. Without a word from you every model is on `standard` alone; "
        "`paddock set-tier --all --tier standard --tier high --tier maximum` opens all tiers to all models.",
    )
    tier.add_argument("models", nargs="*", metavar="MODEL", help="models, by name")
    tier.add_argument(
        "--all", dest="all_models", action="store_true", help="all models that have no tiers of their own"
    )
    which = tier.add_mutually_exclusive_group(required=True)
    which.add_argument("--tier", action="append", choices=TIERS, help="a tier; may be repeated")
    which.add_argument("--none", action="store_true", help="no tier: not to be asked for in an envelope at all")
    which.add_argument("--default", action="store_true", help="forget what was said")
    _tier_command(commands, "list-tiers", "show on which security tiers models are")

    shown = _key_command(
        commands,
        "server-key",
        "show the fingerprints of the keys that envelopes are sealed to",
        "The current key comes first. Clients may pin its fingerprint.",
    )
    rotated = _key_command(
        commands,
        "rotate-server-key",
        "make a new server key; the one before opens envelopes for a while yet",
        "The new key is served at once. `--grace 0` ends all earlier keys now: for a key that others may know.",
    )
    rotated.add_argument(
        "--grace",
        type=ahead,
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
