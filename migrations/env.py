"""Alembic's entry: runs on the connection that batch.storage.migrate hands over.

Without one (the `alembic` command at a developer's desk) it opens the configured database.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from batch.settings import load_settings
from batch.storage.engine import Database
from batch.storage.tables import metadata


def run(connection: sa.Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with Database(load_settings().resolved_database_url).write() as opened:
        run(opened)
