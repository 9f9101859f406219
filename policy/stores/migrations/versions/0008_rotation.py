"""A key that was rotated goes on with the counters of the first of its line: limits and budgets hold for all of them.

Keys that were rotated before this have counters of their own already, and keep them.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE api_key ADD COLUMN counts_as bigint REFERENCES api_key (id)")
    op.execute("CREATE INDEX api_key_counts_as ON api_key (counts_as) WHERE counts_as IS NOT NULL")


def downgrade() -> None:
    op.execute("ALTER TABLE api_key DROP COLUMN counts_as")
