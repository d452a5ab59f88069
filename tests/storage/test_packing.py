"""Sets of numbers in statements: found by a key, on both databases."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from batch.storage.engine import Database
from batch.storage.packing import among
from batch.storage.tables import requests, results


def test_lines_of_a_batch_are_looked_up_by_their_key(sqlite_db: Database) -> None:
    """A scan would make every claim and every commit as long as the batch."""
    has_result = sa.exists().where(results.c.batch_id == requests.c.batch_id, results.c.line == requests.c.line)
    query = sa.select(requests.c.body).where(requests.c.batch_id == 1, among(requests.c.line, [3, 5]), ~has_result)
    compiled = query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
    with sqlite_db.read() as conn:
        plan = [row[3] for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")]
    assert any("requests" in step and "batch_id=? AND line=?" in step for step in plan), plan


def test_a_set_may_be_denied_and_combined(db: Database) -> None:
    """NOT and OR around a set mean what they say."""
    numbers = sa.union_all(*(sa.select(sa.literal(n).label("n")) for n in (1, 2, 3))).subquery()
    with db.read() as conn:
        outside = conn.execute(sa.select(numbers.c.n).where(~among(numbers.c.n, [2]))).scalars().all()
        either = conn.execute(sa.select(numbers.c.n).where(among(numbers.c.n, [2]) | (numbers.c.n == 3)))
        assert (sorted(outside), sorted(either.scalars())) == ([1, 3], [2, 3])
