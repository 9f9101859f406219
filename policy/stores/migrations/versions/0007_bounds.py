"""A tenant's bounds on the shape of requests: what differs from the usual ones, as one JSON object.

Which names there are is the services' to know, and grows with versions; here stands what every reader relies on.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE FUNCTION paddock_bounds_ok(bounds jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
            SELECT jsonb_typeof(bounds) = 'object' AND NOT EXISTS (
                SELECT FROM jsonb_each(CASE jsonb_typeof(bounds) WHEN 'object' THEN bounds ELSE '{}' END) AS bound
                WHERE NOT CASE key
                    WHEN 'template_logic' THEN jsonb_typeof(value) = 'boolean'
                    WHEN 'operator_options' THEN jsonb_typeof(value) = 'array'
                    WHEN 'depth' THEN jsonb_typeof(value) = 'number' AND value BETWEEN '1' AND '256'
                    ELSE jsonb_typeof(value) = 'number' AND value BETWEEN '0' AND '1000000000'
                END
            )
        $$
    """)
    op.execute("ALTER TABLE tenant ADD COLUMN bounds jsonb NOT NULL DEFAULT '{}' CHECK (paddock_bounds_ok(bounds))")


def downgrade() -> None:
    op.execute("ALTER TABLE tenant DROP COLUMN bounds")
    op.execute("DROP FUNCTION paddock_bounds_ok")
