"""The ledger: one audit row a request, and the sums that budgets are rebuilt from.

`audit` is partitioned by month of the request's start, so that old months are dropped and not deleted; its key is the
start and the request id, which every event of a request carries. `usage_daily` grows with tenants, keys and models and
not with requests: reports and rebuilt counters read it alone.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE audit (
            request_id text NOT NULL,
            started_at timestamptz NOT NULL,
            tenant_id bigint,
            tenant text NOT NULL DEFAULT '',
            key_id bigint,
            key_prefix text NOT NULL DEFAULT '',
            model text NOT NULL DEFAULT '',
            endpoint text NOT NULL DEFAULT '',
            method text NOT NULL DEFAULT '',
            decision text NOT NULL,
            reason text NOT NULL DEFAULT '',
            outcome text NOT NULL DEFAULT '',
            status integer,
            prompt_tokens bigint,
            completion_tokens bigint,
            estimated boolean,
            settled_at timestamptz,
            ttft_us bigint,
            duration_us bigint,
            upstream_us bigint,
            load_ns bigint,
            prompt_ns bigint,
            eval_ns bigint,
            bytes_in bigint,
            bytes_out bigint,
            address text NOT NULL DEFAULT '',
            flags text NOT NULL DEFAULT '',
            requests integer NOT NULL DEFAULT 1,
            PRIMARY KEY (started_at, request_id)
        ) PARTITION BY RANGE (started_at)
    """)
    op.execute("CREATE INDEX audit_request ON audit (request_id)")
    op.execute("CREATE INDEX audit_tenant ON audit (tenant_id, started_at)")
    op.execute("CREATE TABLE audit_default PARTITION OF audit DEFAULT")
    op.execute("""
        CREATE TABLE usage_daily (
            day date NOT NULL,
            tenant_id bigint NOT NULL,
            key_id bigint NOT NULL,
            model text NOT NULL,
            requests bigint NOT NULL,
            prompt_tokens bigint NOT NULL,
            completion_tokens bigint NOT NULL,
            estimated_requests bigint NOT NULL,
            load_ns bigint NOT NULL,
            prompt_ns bigint NOT NULL,
            eval_ns bigint NOT NULL,
            PRIMARY KEY (tenant_id, key_id, model, day)
        )
    """)
    op.execute("CREATE INDEX usage_daily_day ON usage_daily (day)")


def downgrade() -> None:
    op.execute("DROP TABLE usage_daily")
    op.execute("DROP TABLE audit")
