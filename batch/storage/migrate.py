"""Bringing a database to the newest schema.

Owns: where the migrations lie (migrations/ in the repository, batch/_migrations in a wheel) and that
only one of several starters runs them at a time.
May not touch: rows. A migration does one thing and is marked `expand` or `contract`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from batch.domain.errors import InvalidConfiguration
from batch.storage.engine import Database

_LOCK = 0x42_61_74_63_68  # "Batch": PostgreSQL's advisory lock of migrations


def migrate(db: Database) -> None:
    """Upgrade to the newest schema, in one transaction. Safe with several starters; a no-op when current."""
    if not pending(db):
        return
    with db.write() as connection:  # BEGIN IMMEDIATE keeps other starters out on SQLite
        if not db.is_sqlite:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        command.upgrade(alembic_config(connection), "head")


def migrate_at(url: str) -> None:
    """Open, migrate, close. Raises InvalidConfiguration that names the place, never its password."""
    try:
        db = Database(url)
        try:
            migrate(db)
        finally:
            db.close()
    except SQLAlchemyError as error:
        raise InvalidConfiguration(
            f"database {_place(url)}: {driver_reason(error)}\n"
            "mend it, or name another: BATCHMILL_DATABASE_URL=sqlite:///path or postgresql://user:word@host/name",
            param="database_url",
        ) from None


def pending(db: Database) -> bool:
    """True when migrate() would change something. Cheap: readiness asks it every few seconds."""
    with db.read() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return True
        current = set(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars())
    return current != _newest()


def _place(url: str) -> str:
    try:
        parsed = make_url(url)
    except ArgumentError:
        return "url"
    return str(parsed.database) if parsed.host is None else f"{parsed.host}:{parsed.port or 5432}"


def driver_reason(error: SQLAlchemyError) -> str:
    """What a driver says, in one line; it names hosts and users, never passwords."""
    if isinstance(error, DBAPIError):
        return str(error.orig).partition("\n")[0]
    return "not a database URL" if isinstance(error, ArgumentError) else type(error).__name__


def migrations_folder() -> Path:
    """The folder with env.py and versions/: inside an installed wheel, else beside the package."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


@cache
def _newest() -> set[str]:
    return set(ScriptDirectory.from_config(alembic_config()).get_heads())


def alembic_config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
