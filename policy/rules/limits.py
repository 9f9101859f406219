"""What a key or a tenant may spend, and which bound binds.

A limit of None is no limit. Every figure is for one scope (a key, or a tenant); a request is held to the scopes of its
key and of its tenant together, and the tightest binds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one scope. Tokens are prompt and completion tokens together; periods are UTC calendar periods."""

    rpm: int | None = None  # requests in any 60 seconds
    tpm: int | None = None  # tokens in any 60 seconds, what is reserved included
    concurrency: int | None = None  # metered requests under way at once
    budget_day: int | None = None  # tokens per UTC day
    budget_month: int | None = None  # tokens per UTC calendar month
    budget_total: int | None = None  # tokens ever

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 0:
                raise ValueError(f"{field.name} is {value}: a limit is zero or more, or absent")


UNLIMITED = Limits()
