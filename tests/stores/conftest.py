"""Fixtures of this folder."""

from tests.postgresql import database, own_postgresql, postgresql

__all__ = ["database", "own_postgresql", "postgresql"]
