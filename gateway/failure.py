"""A failure the operator can act on: what failed, why, and what to do.

The command line prints these and exits 1. Anything else that is raised is a defect and keeps its traceback.
"""

from __future__ import annotations

import re

# Whatever a part wrote into its log may be quoted to the operator, who may paste it anywhere.
_SECRETS = (
    (re.compile(r"\b(nz_[0-9A-Za-z]{0,9})[0-9A-Za-z]*"), r"\1…"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]+"), "…"),  # a session's token
    (re.compile(r"(?i)\b(bearer\s+)\S+"), r"\1…"),
    (re.compile(r"(\w+://[^\s:/@]*:)[^\s@]*@"), r"\1…@"),
    (re.compile(r"\b[0-9a-fA-F]{48,}\b"), "…"),
)


class Failure(Exception):
    """Something outside this program is not as it must be; `str()` is what the operator reads."""

    def __init__(self, what: str, *, quote: str = "", do: str = "") -> None:
        super().__init__(what, quote, do)
        self.what = what
        self.quote = quote
        self.do = do

    def __str__(self) -> str:
        lines = [self.what, *(f"  | {line}" for line in self.quote.splitlines())]
        return "\n".join([*lines, f"  {self.do}"] if self.do else lines)


def redacted(text: str) -> str:
    """The text without keys, bearer tokens, passwords in URLs and long hexadecimal secrets."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text
