"""A world on each database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from batch.operations.world import World
from tests.harness.worlds import make_world


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    """Settings by default, files in a temporary directory, one provider; once per database."""
    opened = make_world(database_url, tmp_path / "data")
    yield opened
    opened.close()


@pytest.fixture
def sqlite_world(sqlite_url: str, tmp_path: Path) -> Iterator[World]:
    """The same on SQLite alone, for behaviour that no database can change."""
    opened = make_world(sqlite_url, tmp_path / "data")
    yield opened
    opened.close()
