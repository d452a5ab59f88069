"""Migrations: up, down, up again, and equal to the tables of the code."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from batch.storage.engine import Database
from batch.storage.migrate import alembic_config, migrate, pending
from batch.storage.tables import metadata


def test_the_migrated_schema_equals_the_metadata(db: Database) -> None:
    with db.read() as conn:
        assert compare_metadata(MigrationContext.configure(conn), metadata) == []


def test_down_leaves_no_table_and_up_again_makes_them_all(db: Database) -> None:
    with db.write() as conn:
        command.downgrade(alembic_config(conn), "base")
    assert pending(db)
    assert set(sa.inspect(db.engine).get_table_names()) <= {"alembic_version"}
    migrate(db)
    assert not pending(db)
    assert set(metadata.tables) <= set(sa.inspect(db.engine).get_table_names())


def test_checks_and_indexes_survive_migration(db: Database) -> None:
    """compare_metadata does not see CHECKs and partial indexes: ask the database."""
    inspector = sa.inspect(db.engine)
    for table in metadata.tables.values():
        checks = {c["name"] for c in inspector.get_check_constraints(table.name)}
        wanted = {str(c.name) for c in table.constraints if isinstance(c, sa.CheckConstraint)}
        assert wanted <= checks
        indexes = {i["name"] for i in inspector.get_indexes(table.name)}
        assert {str(i.name) for i in table.indexes} <= indexes


def test_several_starters_migrate_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    failures: list[BaseException] = []

    def start() -> None:
        try:
            database = Database(url)
            migrate(database)
            database.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_the_frozen_migration_makes_the_very_tables_of_the_code(tmp_path: Path) -> None:
    """Options that no inspector shows (WITHOUT ROWID, partial indexes, CHECK texts) are compared as SQL."""
    migrated, made = Database(f"sqlite:///{tmp_path / 'a.db'}"), Database(f"sqlite:///{tmp_path / 'b.db'}")
    migrate(migrated)
    metadata.create_all(made.engine)
    assert _statements(migrated) == _statements(made)
    migrated.close()
    made.close()


def _statements(database: Database) -> dict[str, list[str]]:
    """Each table's and index's SQL as a sorted list of its parts: their order means nothing, nor do line breaks
    (SQLite writes added columns behind the last one, on its line)."""
    ours = "sql IS NOT NULL AND name NOT IN ('alembic_version', 'sqlite_sequence')"
    with database.read() as conn:
        rows = conn.exec_driver_sql(f"SELECT name, sql FROM sqlite_master WHERE {ours}").fetchall()
    return {name: sorted(filter(None, map(str.strip, _COMMA.split(_parts(sql))))) for name, sql in rows}


_COMMA = re.compile(r",(?![^(]*\))|\n")  # not within parentheses


def _parts(sql: str) -> str:
    body, _, rest = re.sub(r"[ \t]+", " ", sql).rpartition(")")
    return f"{body}\n){rest}"
