"""Browser sessions: what each tenant allows, publishable keys, what was taken back, and the salts of signing keys.

No session has a row: sessions live in the counter store and in their tokens. Only what takes one back is here, until
the session would have ended anyway. Every change is told on the channel of 0001, as `sessions`.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    CREATE TABLE session_policy (
        tenant_id bigint PRIMARY KEY REFERENCES tenant (id) ON DELETE CASCADE,
        origins text[] NOT NULL CHECK (cardinality(origins) > 0),
        models text[],
        endpoints text[] NOT NULL,
        lifetime_seconds integer NOT NULL CHECK (lifetime_seconds BETWEEN 60 AND 86400),
        fingerprint_policy text NOT NULL CHECK (fingerprint_policy IN ('ignore', 'observe', 'enforce')),
        signature_policy text NOT NULL CHECK (signature_policy IN ('off', 'legacy', 'hmac')),
        entropy_policy text NOT NULL CHECK (entropy_policy IN ('ignore', 'require')),
        max_tokens bigint CHECK (max_tokens BETWEEN 1 AND 1000000000),
        max_per_fingerprint integer NOT NULL CHECK (max_per_fingerprint BETWEEN 1 AND 1000),
        max_live integer NOT NULL CHECK (max_live BETWEEN 1 AND 1000000),
        opened_per_minute integer NOT NULL CHECK (opened_per_minute BETWEEN 1 AND 100000),
        not_before timestamptz NOT NULL DEFAULT to_timestamp(0)
    )
    """,
    """
    CREATE TABLE session_limit (
        tenant_id bigint NOT NULL REFERENCES session_policy (tenant_id) ON DELETE CASCADE,
        scope text NOT NULL CHECK (scope IN ('session', 'fingerprint', 'address', 'together')),
        rpm bigint, tpm bigint, concurrency bigint,
        budget_day bigint, budget_month bigint, budget_total bigint,
        CHECK (least(rpm, tpm, concurrency, budget_day, budget_month, budget_total) >= 0),
        CHECK (greatest(rpm, tpm, concurrency, budget_day, budget_month, budget_total) <= 1000000000000000),
        PRIMARY KEY (tenant_id, scope)
    )
    """,
    # Kept when its tenant allows no sessions any more: it names the tenant again when that changes.
    """
    CREATE TABLE publishable_key (
        key text COLLATE "C" PRIMARY KEY CHECK (key ~ '^nzp_[0-9A-Za-z]{32}$'),
        tenant_id bigint NOT NULL REFERENCES tenant (id) ON DELETE CASCADE,
        label text NOT NULL DEFAULT '',
        created_at timestamptz NOT NULL DEFAULT now(),
        revoked_at timestamptz
    )
    """,
    "CREATE INDEX publishable_key_tenant ON publishable_key (tenant_id)",
    """
    CREATE TABLE session_revocation (
        session_id text COLLATE "C" PRIMARY KEY,
        revoked_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz NOT NULL
    )
    """,
    "CREATE INDEX session_revocation_expiry ON session_revocation (expires_at)",
    # Half of a signing key: the other half is in a file that no database backup has.
    """
    CREATE TABLE session_key (
        kid text COLLATE "C" PRIMARY KEY CHECK (kid ~ '^[A-Za-z0-9_-]{1,32}$'),
        salt bytea NOT NULL CHECK (length(salt) = 32),
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE FUNCTION paddock_sessions_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_notify('paddock_changed', 'sessions');
        RETURN NULL;
    END
    $$
    """,
    *(
        f"CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION paddock_sessions_changed()"
        for table in ("session_policy", "session_limit", "publishable_key", "session_revocation", "session_key")
    ),
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    for table in ("session_limit", "session_policy", "publishable_key", "session_revocation", "session_key"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION paddock_sessions_changed")
