"""Alembic's entry: run what is missing on the connection that `policy.stores.migrate` opened.

All missing migrations run in one transaction, behind an advisory lock taken inside it: of many replicas that start at
once one migrates, the others wait for its commit and then find nothing left to do. A crash leaves nothing half done.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from policy.stores.migrate import LOCK

connection: Connection = context.config.attributes["connection"]
context.configure(connection=connection, transaction_per_migration=False)
with context.begin_transaction():
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    context.run_migrations()
