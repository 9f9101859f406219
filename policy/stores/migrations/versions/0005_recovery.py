"""How far Envoy's access log has been read by the process that leads the ledger."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE TABLE access_log_mark (source text PRIMARY KEY, mark text NOT NULL)")


def downgrade() -> None:
    op.execute("DROP TABLE access_log_mark")
