"""The invariants that no constraint can express, each as one query for what breaks it.

Owns: reads only, bounded; for operations/doctor.py. Each function returns the public ids (or names) of
what is wrong, at most `limit`. May not touch: any row.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from batch.storage.engine import db_in
from batch.storage.jobs import Job, waiting_jobs
from batch.storage.tables import batch_lanes, batches, files, lanes, line_progress, results, slices

LATE_S = 180  # a sweep should have seen to it long ago


def sqlite_faults(conn: sa.Connection) -> list[str]:
    """What PRAGMA quick_check reports; empty on PostgreSQL."""
    if conn.dialect.name != "sqlite":
        return []
    return [row for row in conn.exec_driver_sql("PRAGMA quick_check(10)").scalars() if row != "ok"]


def miscounted_batches(conn: sa.Connection, limit: int) -> list[str]:
    """Counts or cursor that disagree with the result rows (of batches that still have them)."""
    tally = (
        sa.select(
            results.c.batch_id,
            sa.func.count().label("rows"),
            sa.func.sum(sa.case((results.c.ok.is_(sa.true()), 1), else_=0)).label("good"),
            sa.func.max(results.c.seq).label("last"),
        )
        .group_by(results.c.batch_id)
        .subquery()
    )
    rows, good, last = (sa.func.coalesce(tally.c[name], 0) for name in ("rows", "good", "last"))
    wrong = sa.or_(
        batches.c.completed + batches.c.failed != rows, batches.c.completed != good, batches.c.last_seq != last
    )
    query = sa.select(batches.c.public_id).outerjoin(tally, tally.c.batch_id == batches.c.id)
    return _names(conn, query.where(batches.c.purged_at.is_(None), batches.c.status != "validating", wrong), limit)


def unfinished_endings(conn: sa.Connection, limit: int) -> list[str]:
    """Ended batches without the file that their counts call for, or whose lines do not add up."""
    ended = batches.c.status.in_(("completed", "cancelled", "expired"))
    done = batches.c.completed + batches.c.failed
    wrong = sa.or_(
        sa.and_(batches.c.completed > 0, batches.c.output_file_id.is_(None)),
        sa.and_(batches.c.failed > 0, batches.c.error_file_id.is_(None)),
        sa.and_(batches.c.output_file_id.is_(None), batches.c.error_file_id.is_(None), batches.c.total > 0),
        sa.and_(batches.c.status == "completed", done != batches.c.total),
    )
    return _names(conn, sa.select(batches.c.public_id).where(ended, wrong), limit)


def late_leases(conn: sa.Connection, limit: int) -> list[str]:
    """Batches with a slice whose lease ended long ago and that nobody took back."""
    query = (
        sa.select(batches.c.public_id)
        .join(slices, slices.c.batch_id == batches.c.id)
        .where(slices.c.state == "leased", slices.c.lease_until < db_in(-LATE_S))
        .distinct()
    )
    return _names(conn, query, limit)


def stuck_jobs(conn: sa.Connection, limit: int) -> list[str]:
    """Batches that wait for ingest or finalize and that nobody holds."""
    waiting = (
        waiting_jobs(conn, job, idle_s=LATE_S, limit=limit, column=batches.c.public_id)
        for job in (Job.INGEST, Job.FINALIZE)
    )
    return [public_id for found in waiting for public_id in found]


def live_blobs(conn: sa.Connection, after_id: int, limit: int) -> list[tuple[int, str, str, int]]:
    """(id, public id, blob, size) of files that still exist, by id after `after_id`."""
    query = (
        sa.select(files.c.id, files.c.public_id, files.c.blob, files.c.size_bytes)
        .where(files.c.deleted_at.is_(None), files.c.blob_deleted_at.is_(None), files.c.id > after_id)
        .order_by(files.c.id)
        .limit(limit)
    )
    return [(row.id, row.public_id, row.blob, row.size_bytes) for row in conn.execute(query)]


def leftover_rows(conn: sa.Connection, limit: int) -> list[str]:
    """Sealed batches that still have ready or leased slices, or progress of lines that are done."""
    slices_left = sa.exists(
        sa.select(slices.c.id).where(slices.c.batch_id == batches.c.id, slices.c.state.in_(("ready", "leased")))
    )
    sealed = sa.select(batches.c.public_id).where(
        batches.c.sealed_at < db_in(-LATE_S), batches.c.status.in_(("cancelled", "expired")), slices_left
    )
    progress_left = (
        sa.select(batches.c.public_id)
        .join(line_progress, line_progress.c.batch_id == batches.c.id)
        .join(
            results,
            sa.and_(results.c.batch_id == line_progress.c.batch_id, results.c.line == line_progress.c.line),
        )
        .distinct()
    )
    return _names(conn, sealed, limit) + _names(conn, progress_left, limit)


def lanes_out_of_count(conn: sa.Connection, limit: int) -> list[str]:
    """Advisory counters far from the slices that they count: "provider / model"."""
    counted = (
        sa.select(slices.c.lane_id, slices.c.batch_id, sa.func.sum(slices.c.line_count).label("lines"))
        .where(slices.c.state.in_(("ready", "leased")))
        .group_by(slices.c.lane_id, slices.c.batch_id)
        .subquery()
    )
    held = batch_lanes.c.ready_lines + batch_lanes.c.leased_lines
    query = (
        sa.select(lanes.c.provider, lanes.c.model)
        .join(batch_lanes, batch_lanes.c.lane_id == lanes.c.id)
        .outerjoin(
            counted,
            sa.and_(counted.c.lane_id == batch_lanes.c.lane_id, counted.c.batch_id == batch_lanes.c.batch_id),
        )
        .where(held != sa.func.coalesce(counted.c.lines, 0))
        .distinct()
        .limit(limit)
    )
    return [f"{row.provider} / {row.model}" for row in conn.execute(query)]


def _names(conn: sa.Connection, query: sa.Select[Any], limit: int) -> list[str]:
    return [str(name) for name in conn.execute(query.limit(limit)).scalars()]
