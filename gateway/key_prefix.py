"""A key's prefix as an argument: what is more of the key than that is refused, and said to be exposed."""

from __future__ import annotations

import re

from gateway.failure import Failure, redacted
from policy.rules.session_token import SESSION_ID

_PREFIX = re.compile(r"nz_[0-9A-Za-z]{9}")


def checked_prefix(text: str) -> str:
    """`text`, if it is a prefix."""
    refuse_secret(text)
    if not _PREFIX.fullmatch(text):
        raise Failure(
            f"{redacted(text)!r} is not a key's prefix",
            do="It is nz_ and 9 letters or digits; see `paddock list-keys`.",
        )
    return text


def checked_holder(text: str) -> str:
    """`text`, if it is a key's prefix or a session's id: what stands in an audit row."""
    return text if SESSION_ID.fullmatch(text) else checked_prefix(text)


def refuse_secret(text: str) -> None:
    """Failure if `text` is a key, or more of one than its prefix."""
    if text.startswith("nz_") and len(text) > 12:
        raise Failure(
            "that is more of a key than its prefix",
            do=f"Use the prefix, its first 12 characters: {text[:12]}. What was given has now been in the list of "
            "processes, which others may read, and perhaps in your shell's history: "
            f"`paddock rotate-key {text[:12]}` replaces the key.",
        )
