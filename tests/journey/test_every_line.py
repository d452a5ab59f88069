"""A file of some thousand lines through a whole service: each line once, in order, on both databases."""

from __future__ import annotations

import pytest

from benchmarks.every_line import measure


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_each_line_comes_out_once_in_the_order_of_the_input(database: str) -> None:
    """The program that checks 100,000 lines, with 3,000; it raises when a line is lost, doubled or misplaced."""
    rows = list(measure(database, 3_000, with_a_death=False))
    assert rows[0].values == [3_000] and not rows[0].note.endswith(" 0 error")
    assert [row.what for row in rows if row.most is not None and row.median > row.most] == []
