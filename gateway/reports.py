"""The commands that read the ledger: their arguments. What they do is in `gateway.usage` and `gateway.audit`.

Times are UTC. A moment may be written as what has passed since (`1h`, `30d`), as a date or as a time (ISO 8601).
"""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway import running
from gateway.argument_types import duration

if TYPE_CHECKING:
    from gateway.command_line import Subparsers

DIMENSIONS = ("tenant", "key", "model", "day")
FORMATS = ("table", "csv", "json")
MOST_ROWS = 10_000
_WHEN = "a date, a time (ISO 8601, UTC unless it says otherwise) or what has passed since: 1h, 30d"


def register(commands: Subparsers) -> None:
    """Add the commands to the `paddock` parser."""
    _usage(commands)
    _audit(commands)


def _usage(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "usage",
        help="show what was used: requests, tokens, seconds of machine",
        description="What metered requests used, by UTC day of their admission, as it was charged. "
        "Without a time: this month.",
    )
    parser.add_argument(
        "--by",
        type=_dimensions,
        action="extend",
        metavar="WHAT",
        help=f"{', '.join(DIMENSIONS)}; several with commas, or repeated (default: tenant,model)",
    )
    _add_whom(parser)
    parser.add_argument("--since", type=moment, metavar="WHEN", help=f"first day: {_WHEN} (default: the month's first)")
    parser.add_argument("--until", type=moment, metavar="WHEN", help="last day, itself included (default: today)")
    parser.add_argument("--format", choices=FORMATS, help="(default: table)")
    parser.add_argument("--json", action="store_true", help="the same as --format json")
    running.add_arguments(parser)
    parser.set_defaults(run="gateway.usage:usage", wrong=parser.error)


def _audit(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "audit",
        help="show what became of requests",
        description="Audit rows, newest first; of the last 24 hours where no time is named. "
        "With --request-id: all about one request, as soon as it is complete.",
    )
    parser.add_argument("--request-id", metavar="ID", help="the X-Request-ID of a response")
    _add_whom(parser)
    parser.add_argument(
        "--status", type=_status, metavar="N", help="HTTP status of the response; 0: its client left before"
    )
    parser.add_argument(
        "--reason",
        type=_word,
        metavar="REASON",
        help="why it was refused (budget_day, key_unknown, …), how an answer ended (aborted, cut, lost, …), or allowed",
    )
    parser.add_argument("--since", type=moment, metavar="WHEN", help=f"from then on: {_WHEN} (default: 24h)")
    parser.add_argument("--until", type=moment, metavar="WHEN", help="before then (default: now)")
    parser.add_argument(
        "--limit", type=_limit, default=100, metavar="N", help="at most that many rows (default: %(default)s)"
    )
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=3.0,
        metavar="SECONDS",
        help="with --request-id: how long to wait for a row that is not there or not complete (default: 3)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    running.add_arguments(parser)
    parser.set_defaults(run="gateway.audit:audit", wrong=parser.error)


def _add_whom(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenant", metavar="NAME", help="only this tenant")
    parser.add_argument("--key", "--prefix", dest="key", metavar="PREFIX", help="only the key with this prefix")
    parser.add_argument("--model", metavar="NAME", help="only this model")


def moment(text: str) -> datetime:
    """A moment, aware and in UTC."""
    try:
        return datetime.now(UTC) - duration(text)
    except OverflowError:
        raise argparse.ArgumentTypeError(f"{text!r} is longer ago than there are dates") from None
    except argparse.ArgumentTypeError:
        pass  # then it is a date or a time
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither like 30d nor like 2030-01-31 or 2030-01-31T12:00"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)


def _dimensions(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in DIMENSIONS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(DIMENSIONS)}")
    return names


def _word(text: str) -> str:
    if not re.fullmatch("[a-z_]{1,40}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a word like budget_day")
    return text


def _status(text: str) -> int:
    return 0 if text == "0" else _number(text, 100, 599)


def _limit(text: str) -> int:
    return _number(text, 1, MOST_ROWS)


def _number(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdecimal()) or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:  # which nan is not either
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 3600")
    return seconds
