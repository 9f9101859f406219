"""Fixtures of this folder."""

from tests.postgresql import database, postgresql

__all__ = ["database", "postgresql"]
