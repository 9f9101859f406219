"""What stands in an argument, and what is refused there."""

from __future__ import annotations

import argparse
from datetime import timedelta

import pytest

from gateway.argument_types import duration


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0", timedelta()),
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("24H", timedelta(days=1)),
        (" 7d ", timedelta(days=7)),
        ("2w", timedelta(days=14)),
    ],
)
def test_durations(text: str, meant: timedelta) -> None:
    assert duration(text) == meant


@pytest.mark.parametrize("text", ["", "h", "1", "-1h", "1.5h", "1 h", "1y", "9999999d", "١h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        duration(text)
