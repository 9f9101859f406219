"""Faults: a dependency did not answer. A refusal is a value (`policy.rules.decision.Deny`); these are raised."""

from __future__ import annotations


class StoreDown(Exception):
    """The counter store did not answer, or answered that it cannot: no decision may be made without it."""


class DatabaseDown(Exception):
    """PostgreSQL did not answer: no key may be believed without it."""
