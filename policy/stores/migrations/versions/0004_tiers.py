"""Which models are on which security tiers. A model without a row is on those of `*`, and without that on `standard`.

Tiers come to the services along with every key, so a change is a change of all keys.
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE model_tier (
            model text COLLATE "C" PRIMARY KEY CHECK (model <> ''),
            tiers text[] NOT NULL CHECK (tiers <@ ARRAY['standard', 'high', 'maximum'])
        )
    """)
    op.execute("""
        CREATE FUNCTION paddock_tiers_changed() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_notify('paddock_changed', 'all');
            RETURN NULL;
        END
        $$
    """)
    op.execute("""
        CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON model_tier
        FOR EACH STATEMENT EXECUTE FUNCTION paddock_tiers_changed()
    """)


def downgrade() -> None:
    op.execute("DROP TABLE model_tier")
    op.execute("DROP FUNCTION paddock_tiers_changed")
