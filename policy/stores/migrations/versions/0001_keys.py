"""Tenants and keys, and the notice that anything about them changed.

The triggers live here rather than in the writers so that an operator's own UPDATE in psql takes effect like any other
change. `last_used_at` is bookkeeping that changes no decision and stays silent.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Counters live in Redis Lua, whose numbers are doubles: whole up to 2^53, so every figure stays well below.
_LIMITS = """
    max_tokens bigint CHECK (max_tokens BETWEEN 1 AND 1000000000),
    rpm bigint, tpm bigint, concurrency bigint,
    budget_day bigint, budget_month bigint, budget_total bigint,
    CHECK (least(rpm, tpm, concurrency, budget_day, budget_month, budget_total) >= 0),
    CHECK (greatest(rpm, tpm, concurrency, budget_day, budget_month, budget_total) <= 1000000000000000)
"""

_STATEMENTS = (
    # No tenant is called nz_…: a name can never be mistaken for a key's prefix.
    f"""
    CREATE TABLE tenant (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text COLLATE "C" NOT NULL CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{{0,63}}$' AND name !~* '^nz_'),
        disabled boolean NOT NULL DEFAULT false,
        allow_all_models boolean NOT NULL DEFAULT false,
        {_LIMITS},
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE UNIQUE INDEX tenant_name ON tenant (lower(name))",
    """
    CREATE TABLE tenant_model (
        tenant_id bigint NOT NULL REFERENCES tenant (id) ON DELETE CASCADE,
        model text COLLATE "C" NOT NULL CHECK (model <> ''),
        PRIMARY KEY (tenant_id, model)
    )
    """,
    # models_restricted tells "whatever the tenant may use" (false) from "these alone" (true, perhaps none).
    f"""
    CREATE TABLE api_key (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        prefix text COLLATE "C" NOT NULL UNIQUE CHECK (prefix ~ '^nz_[0-9A-Za-z]{{9}}$'),
        hash text NOT NULL CHECK (hash LIKE '$argon2id$%'),
        tenant_id bigint NOT NULL REFERENCES tenant (id),
        owner text NOT NULL DEFAULT '',
        label text NOT NULL DEFAULT '',
        created_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz,
        last_used_at timestamptz,
        disabled boolean NOT NULL DEFAULT false,
        revoked_at timestamptz,
        successor_id bigint REFERENCES api_key (id),
        models_restricted boolean NOT NULL DEFAULT false,
        {_LIMITS}
    )
    """,
    "CREATE INDEX api_key_tenant ON api_key (tenant_id)",
    """
    CREATE TABLE api_key_model (
        key_id bigint NOT NULL REFERENCES api_key (id) ON DELETE CASCADE,
        model text COLLATE "C" NOT NULL CHECK (model <> ''),
        PRIMARY KEY (key_id, model)
    )
    """,
    # A notice names what changed and nothing more; PostgreSQL sends equal notices of one transaction once.
    """
    CREATE FUNCTION paddock_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'TRUNCATE' THEN
            PERFORM pg_notify('paddock_changed', 'all');
            RETURN NULL;
        END IF;
        IF TG_OP <> 'INSERT' THEN
            CASE TG_TABLE_NAME
                WHEN 'tenant' THEN PERFORM pg_notify('paddock_changed', 'tenant:' || OLD.id);
                WHEN 'tenant_model' THEN PERFORM pg_notify('paddock_changed', 'tenant:' || OLD.tenant_id);
                WHEN 'api_key' THEN PERFORM pg_notify('paddock_changed', 'key:' || OLD.prefix);
                WHEN 'api_key_model' THEN
                    PERFORM pg_notify('paddock_changed', 'key:' || prefix) FROM api_key WHERE id = OLD.key_id;
            END CASE;
        END IF;
        IF TG_OP <> 'DELETE' THEN
            CASE TG_TABLE_NAME
                WHEN 'tenant' THEN PERFORM pg_notify('paddock_changed', 'tenant:' || NEW.id);
                WHEN 'tenant_model' THEN PERFORM pg_notify('paddock_changed', 'tenant:' || NEW.tenant_id);
                WHEN 'api_key' THEN PERFORM pg_notify('paddock_changed', 'key:' || NEW.prefix);
                WHEN 'api_key_model' THEN
                    PERFORM pg_notify('paddock_changed', 'key:' || prefix) FROM api_key WHERE id = NEW.key_id;
            END CASE;
        END IF;
        RETURN NULL;
    END
    $$
    """,
    *(
        f"CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON {table}"
        " FOR EACH ROW EXECUTE FUNCTION paddock_changed()"
        for table in ("tenant", "tenant_model", "api_key_model")
    ),
    "CREATE TRIGGER changed AFTER INSERT OR DELETE ON api_key FOR EACH ROW EXECUTE FUNCTION paddock_changed()",
    """
    CREATE TRIGGER changed_but_not_used AFTER UPDATE ON api_key FOR EACH ROW
    WHEN ((to_jsonb(OLD) - 'last_used_at') IS DISTINCT FROM (to_jsonb(NEW) - 'last_used_at'))
    EXECUTE FUNCTION paddock_changed()
    """,
    *(
        f"CREATE TRIGGER emptied AFTER TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION paddock_changed()"
        for table in ("tenant", "tenant_model", "api_key", "api_key_model")
    ),
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    for table in ("api_key_model", "api_key", "tenant_model", "tenant"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION paddock_changed")
