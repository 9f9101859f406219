"""The control words of a prompt: what the caller wants to go slowly, oddly or wrong. The package lists them."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

_WORD = re.compile(r"!([a-z]+(?:-[a-z]+)?)(?:=([0-9]{1,9}))?")


@dataclass(frozen=True, slots=True)
class Controls:
    """Times are in milliseconds; None is "not asked for"."""

    first: int | None = None
    delay: int | None = None
    tokens: int | None = None
    think: int | None = None
    cached: int | None = None
    error_before: int | None = None
    error_after: int | None = None
    die_after: int | None = None
    hang_after: int | None = None
    overrun: bool = False
    nocount: bool = False
    crlf: bool = False
    split: bool = False
    merge: bool = False
    gzip: bool = False
    gzip_always: bool = False
    claim_br: bool = False
    claim_gzip: bool = False


NONE = Controls()
_FLAGS = frozenset(field.name for field in fields(Controls) if field.default is False)
_NUMBERS = frozenset(field.name for field in fields(Controls) if field.default is None)


def parse(text: str) -> tuple[Controls, list[str]]:
    """The controls in the text, and its other words, in order."""
    words = text.split()
    if "!" not in text:
        return NONE, words
    found: dict[str, int | bool] = {}
    rest: list[str] = []
    for word in words:
        match = _WORD.fullmatch(word)
        name = match[1].replace("-", "_") if match else ""
        number = match[2] if match else None
        if name in _FLAGS and number is None:
            found[name] = True
        elif name in _NUMBERS and number is not None and (name != "error_before" or 400 <= int(number) <= 599):
            found[name] = int(number)
        else:
            rest.append(word)
    return replace(NONE, **found), rest  # type: ignore[arg-type]  # the names decide which are int and which bool
