"""What Envoy's own meter (`envoy/meter.lua`) says of one answer, in the one form that it has on every way it goes: to
processor before the last piece of the answer passes, into the access log in case processor could not take it.

The text is JSON. Envoy writes it, yet the figures in it are an upstream's: they are checked like any input.
"""

from __future__ import annotations

import json
from typing import Any

from policy.rules.settlement import Settlement

BYTES_PER_TOKEN = 5  # in an answer that came whole, where nobody counted
_LARGEST = 2**53
_DURATIONS = ("load", "prompt", "eval")  # nanoseconds, as the upstream reports them
_OUTCOMES = frozenset(("completed", "aborted", "cut", "upstream_error", "unreadable"))


def reading(text: str | bytes) -> Settlement:
    """The settlement that a reading asks for: `p` prompt tokens (absent: as estimated), `c` completion tokens, `x`
    whether both are the upstream's own, `st` the upstream's status, `ttft` in µs, the durations, `outcome`.
    ValueError on anything else."""
    try:
        found: dict[str, Any] = json.loads(text)
        prompt = None if found.get("p") is None else _count(found["p"])
        exact = found["x"]
        event: dict[str, object] = {"st": _count(found["st"]) or None, "outcome": found["outcome"]}
        if type(exact) is not bool or found["outcome"] not in _OUTCOMES:
            raise ValueError("not a reading")
        event |= {name: _count(found[name]) for name in (*_DURATIONS, "ttft") if name in found}
        return Settlement(prompt, _count(found["c"]), exact=exact and prompt is not None, event=event)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("not a reading") from error


def _count(value: object) -> int:
    """Lua has no integers: a whole number may come as 12.0."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise ValueError("not a count")
    return value
