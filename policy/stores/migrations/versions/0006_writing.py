"""How far the ledger has been written, and what could not be.

`ledger_position` is written in the transaction that carries a shard's events: whoever sums up what a tenant has used
knows from it which events are in the sum. `ledger_quarantine` keeps events that no table would take, for a person to
look at; the ledger goes on without them.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE ledger_position (
            shard integer PRIMARY KEY,
            epoch text NOT NULL,
            event text NOT NULL
        )
    """)
    op.execute("""
        CREATE TABLE ledger_quarantine (
            shard integer NOT NULL,
            epoch text NOT NULL,
            event text NOT NULL,
            found_at timestamptz NOT NULL DEFAULT now(),
            reason text NOT NULL,
            fields text NOT NULL,
            PRIMARY KEY (shard, epoch, event)
        )
    """)


def downgrade() -> None:
    op.execute("DROP TABLE ledger_quarantine")
    op.execute("DROP TABLE ledger_position")
