"""Fixtures that every shelf may use: real databases, a real Valkey, a data directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from batch.operations.world import World
from batch.storage.engine import Database
from batch.storage.migrate import migrate
from tests.harness.databases import fresh_postgres, postgres_cluster
from tests.harness.servers import running_valkey
from tests.harness.worlds import make_world


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """One Valkey for the session; use `valkey_url` in tests."""
    with running_valkey() as url:
        yield url


@pytest.fixture
def valkey_url(valkey: str) -> str:
    """The URL of an emptied Valkey."""
    import redis

    redis.Redis.from_url(valkey).flushall()
    return valkey


@pytest.fixture(scope="session")
def migrated_template() -> Iterator[str]:
    """The name of a migrated PostgreSQL database to clone from."""
    cluster = postgres_cluster()
    name = "bm_template"
    cluster.admin(f'CREATE DATABASE "{name}"')
    database = Database(cluster.url(name))
    migrate(database)
    database.close()
    yield name


@pytest.fixture
def postgres_url(migrated_template: str) -> Iterator[str]:
    """A fresh, migrated PostgreSQL database."""
    with fresh_postgres(migrated_template) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A fresh, migrated SQLite database."""
    url = f"sqlite:///{tmp_path / 'batchmill.db'}"
    database = Database(url)
    migrate(database)
    database.close()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Each test that asks runs on both databases."""
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """An open, migrated database: once SQLite, once PostgreSQL."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def sqlite_db(sqlite_url: str) -> Iterator[Database]:
    """An open, migrated SQLite database."""
    database = Database(sqlite_url)
    yield database
    database.close()


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    """Settings by default, files in a temporary directory, one provider; once per database."""
    opened = make_world(database_url, tmp_path / "data")
    yield opened
    opened.close()
