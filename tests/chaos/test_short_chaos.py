"""A short run of the chaos harness; `make chaos` runs it for minutes."""

from __future__ import annotations

import pytest

from tests.chaos.__main__ import Chaos


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_nothing_is_lost_when_processes_are_killed(database: str) -> None:
    """Ten faults of many kinds; each line of each acknowledged batch comes out exactly once."""
    verdict = Chaos(seed=7, database=database, workers=2, lines=(20, 150)).run(seconds=30, every_s=0.6, max_faults=10)
    assert verdict.is_clean, verdict.table()
    answered, lines = verdict.seen["lines answered"], verdict.seen["lines"]
    assert isinstance(answered, int) and isinstance(lines, int)
    assert answered > lines / 10, verdict.table()
