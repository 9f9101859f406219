"""`keep_alive`: how long a model stays in memory after a request, which is everybody's memory.

Ollama takes a number of seconds or a Go duration ("5m", "1h30m"). Below zero means for ever; zero, with nothing to
compute, throws the model out from under those who use it, and costs no token.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policy.rules.strict_json import NotAcceptable

if TYPE_CHECKING:
    from policy.rules.bounds import Bounds

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_STEP = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"[+-]?(?:0|(?:{_STEP.pattern})+)")
_LONGEST = 64  # characters


def check_keep_alive(value: object, bounds: Bounds, *, empty: bool) -> None:
    """Refuse what pins a model or throws it out. `empty`: the request asks for nothing to be computed."""
    if value is None:
        return
    seconds = float(value) if isinstance(value, (int, float)) else _duration(str(value))
    if seconds < 0:
        raise NotAcceptable("keep_alive is not to be negative")
    if seconds > bounds.keep_alive_seconds:
        raise NotAcceptable(f"keep_alive is not to be more than {bounds.keep_alive_seconds:g} seconds")
    if empty and seconds < bounds.keep_alive_empty_seconds:
        raise NotAcceptable(
            f"keep_alive is to be at least {bounds.keep_alive_empty_seconds:g} seconds in a request without a prompt"
        )


def _duration(text: str) -> float:
    if len(text) > _LONGEST or not _DURATION.fullmatch(text):
        raise NotAcceptable("keep_alive is to be a duration, such as 5m, or a number of seconds")
    seconds = sum(float(count) * _UNITS[unit] for count, unit in _STEP.findall(text))
    return -seconds if text[0] == "-" else seconds
