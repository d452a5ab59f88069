"""Rows that leave: what finalize reads in input order, what purge removes.

Owns: windows of results and of lines without one, by line number; deletion in bounded passes.
May not touch: recording (storage.results), files. Reads are short: one window, one statement each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from batch.storage.batches import BatchError, insert_errors
from batch.storage.slices import HAS_RESULT
from batch.storage.tables import batch_errors, batch_lanes, batches, line_progress, requests, results, slices


def last_line(conn: sa.Connection, batch_id: int) -> int:
    """The highest line number of the batch, with or without a result; 0 for none."""
    tops = [
        conn.execute(sa.select(sa.func.max(table.c.line)).where(table.c.batch_id == batch_id)).scalar_one()
        for table in (requests, results)
    ]
    return max(top or 0 for top in tops)


def results_between(conn: sa.Connection, batch_id: int, after: int, upto: int) -> list[tuple[int, bool, bytes]]:
    """(line, ok, output without newline) of lines after < line ≤ upto, ascending."""
    driver: Any = conn.connection.driver_connection  # plain tuples: finalize does little else than this
    if conn.dialect.name == "sqlite":
        found = driver.execute(_RESULTS_SQLITE, (batch_id, after, upto))
    else:
        found = driver.cursor(binary=True).execute(_RESULTS_POSTGRESQL, (batch_id, after, upto))
    return [(line, bool(ok), text) for line, ok, text in found.fetchall()]


# As bytes: a str would be decoded only to be encoded again.
_RESULTS_SQLITE = (
    "SELECT line, ok, CAST(output AS BLOB) FROM results WHERE batch_id = ? AND line > ? AND line <= ? ORDER BY line"
)
_RESULTS_POSTGRESQL = (
    "SELECT line, ok, convert_to(output, 'UTF8') FROM results "
    "WHERE batch_id = %s AND line > %s AND line <= %s ORDER BY line"
)


def open_between(conn: sa.Connection, batch_id: int, after: int, upto: int) -> list[tuple[int, str]]:
    """(line, custom_id) of lines after < line ≤ upto without a result, ascending."""
    rows = conn.execute(
        sa.select(requests.c.line, requests.c.custom_id)
        .where(requests.c.batch_id == batch_id, requests.c.line > after, requests.c.line <= upto, ~HAS_RESULT)
        .order_by(requests.c.line)
    )
    return [(line, custom_id) for line, custom_id in rows]


def replace_errors(conn: sa.Connection, batch_id: int, errors: Iterable[BatchError]) -> None:
    """The batch's `errors.data`, anew."""
    conn.execute(sa.delete(batch_errors).where(batch_errors.c.batch_id == batch_id))
    insert_errors(conn, batch_id, 0, errors)


def delete_lines(conn: sa.Connection, batch_id: int, limit: int) -> int:
    """Remove up to `limit` rows of each big table of the batch; returns how many went, 0 when all are gone.

    By key from the front, so that each pass touches a few neighbouring pages.
    """
    gone = 0
    for table in (requests, results, line_progress):
        front = sa.select(table.c.line).where(table.c.batch_id == batch_id).order_by(table.c.line)
        upto = conn.execute(front.offset(limit - 1).limit(1)).scalar_one_or_none()
        condition = table.c.batch_id == batch_id
        if upto is not None:
            condition &= table.c.line <= upto
        gone += conn.execute(sa.delete(table).where(condition)).rowcount
    if gone == 0:
        gone += conn.execute(sa.delete(slices).where(slices.c.batch_id == batch_id)).rowcount
        conn.execute(sa.delete(batch_lanes).where(batch_lanes.c.batch_id == batch_id))
    return gone


def copies_to_answer(conn: sa.Connection, batch_id: int, limit: int) -> list[tuple[int, str, bool, str | None, str]]:
    """(line, custom_id, ok, code, the first line's output) of open lines whose twin has a result."""
    own = results.alias("own")
    has_result = sa.exists().where(own.c.batch_id == requests.c.batch_id, own.c.line == requests.c.line)
    rows = conn.execute(
        sa.select(requests.c.line, requests.c.custom_id, results.c.ok, results.c.code, results.c.output)
        .join(results, (results.c.batch_id == requests.c.batch_id) & (results.c.line == requests.c.copy_of))
        .where(requests.c.batch_id == batch_id, requests.c.copy_of.is_not(None), ~has_result)
        .order_by(requests.c.line)
        .limit(limit)
    )
    return [(row.line, row.custom_id, row.ok, row.code, row.output) for row in rows]


def batches_with_copies(conn: sa.Connection, limit: int) -> list[int]:
    """Running batches that asked for dedupe."""
    wanted = batches.c.options["dedupe"].as_boolean()
    query = (
        sa.select(batches.c.id)
        .where(batches.c.status == "in_progress", batches.c.sealed_at.is_(None), wanted.is_(True))
        .order_by(batches.c.id)
        .limit(limit)
    )
    return list(conn.execute(query).scalars())
