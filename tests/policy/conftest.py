"""Fixtures of this folder."""

import pytest

from tests.postgresql import database, own_postgresql, postgresql

__all__ = ["database", "own_postgresql", "postgresql"]

pytest.register_assert_rewrite("tests.policy.ring")  # so that its assertions say what they compared
