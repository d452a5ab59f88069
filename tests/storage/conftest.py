"""A world on SQLite; `world`, on each database, stands in tests/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from batch.operations.world import World
from tests.harness.worlds import make_world


@pytest.fixture
def sqlite_world(sqlite_url: str, tmp_path: Path) -> Iterator[World]:
    """For behaviour that no database can change."""
    opened = make_world(sqlite_url, tmp_path / "data")
    yield opened
    opened.close()
