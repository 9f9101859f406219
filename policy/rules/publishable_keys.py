"""Publishable keys: `nzp_…`, which stand in a web page and name the tenant that its sessions belong to.

    nzp_ + 26 base62 + 6 base62 (CRC-32 of all that goes before)

They are no secret and prove nothing: what a page may do is decided by its origin and its session. So they are stored,
shown and logged as they are. They cannot be guessed, so that one tenant's page does not create another's sessions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policy.rules.keys import CHECKSUM_LENGTH, checksum, letters

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

KIND = "nzp_"
_RANDOM_LENGTH = 26  # letters: 154 bits
_GRAMMAR = re.compile(rf"{KIND}[0-9A-Za-z]{{{_RANDOM_LENGTH + CHECKSUM_LENGTH}}}")


@dataclass(frozen=True, slots=True)
class PublishableKey:
    """One of them, as it is kept."""

    key: str
    tenant: str
    label: str
    created_at: datetime
    revoked_at: datetime | None


def mint(random: Callable[[int], bytes]) -> str:
    """A new one from `random(n)`, n bytes of a cryptographic source such as os.urandom."""
    body = KIND + "".join(letters(random, _RANDOM_LENGTH))
    return body + checksum(body)


def well_formed(text: str) -> bool:
    """Whether `mint` could have made it."""
    return bool(_GRAMMAR.fullmatch(text)) and checksum(text[:-CHECKSUM_LENGTH]) == text[-CHECKSUM_LENGTH:]
