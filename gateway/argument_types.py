"""What stands in an argument, and what is refused there: limits, counts, spans of time, plain text.

argparse calls these with what was typed; an `ArgumentTypeError` ends the program with usage and status 2.
"""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

_LARGEST = {"max_tokens": 10**9}
_LARGEST_OTHER = 10**15  # counters are doubles in Redis, whole up to 2^53; the schema holds to the same bound
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class figure:  # noqa: N801, RUF100  # argparse shows a type by its name
    """A limit: digits, with `_` between them if you like; perhaps `none`."""

    def __init__(self, name: str, removable: bool) -> None:
        self._low = 1 if name == "max_tokens" else 0
        self._high = _LARGEST.get(name, _LARGEST_OTHER)
        self._removable = removable

    def __call__(self, text: str) -> int | None:
        if self._removable and text.lower() == "none":
            return None
        also = ", or none" if self._removable else ""
        return _whole(text, self._low, self._high, also)


class count:  # noqa: N801, RUF100  # argparse shows a type by its name
    """A number from 1 up, written as a limit is."""

    def __init__(self, largest: int) -> None:
        self._largest = largest

    def __call__(self, text: str) -> int:
        return _whole(text, 1, self._largest)


def _whole(text: str, low: int, high: int, also: str = "") -> int:
    digits = text.replace("_", "")
    if not (digits.isascii() and digits.isdecimal()) or not low <= int(digits) <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}{also}")
    return int(digits)


def duration(text: str) -> timedelta:
    """`90s`, `30m`, `24h`, `30d`, `8w`, `0`."""
    found = re.fullmatch(r"([0-9]{1,6})([smhdw])", text.strip().lower())
    if found is None and text.strip() != "0":
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 90s, 30m, 24h, 30d or 8w")
    return timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else timedelta()


def ahead(text: str) -> timedelta:
    """A time from now, such that there is a date for its end."""
    span = duration(text)
    try:
        datetime.now(UTC) + span
    except OverflowError:
        raise argparse.ArgumentTypeError(f"{text!r} is further ahead than there are dates") from None
    return span


def directory(text: str) -> Path:
    """A directory that is named: an empty word, as of a variable that is not set, would mean the one we are in."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    return Path(text)


def plain(text: str) -> str:
    """Text that a terminal shows as it is."""
    if not text.isprintable() or len(text) > 200:
        raise argparse.ArgumentTypeError("not plain text of at most 200 characters")
    return text
