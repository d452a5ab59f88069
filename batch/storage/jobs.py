"""The job lease: one process at a time ingests, finalizes or purges a batch.

Owns: `job_owner`, `job_epoch`, `job_until` of `batches`, the finders of jobs that wait or whose holder
died, and the transition that ends a finalize. Each write of a job repeats its epoch in the WHERE.
May not touch: lines (storage.ingest, storage.output). See docs/leases.md.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import sqlalchemy as sa

from batch.domain.states import TERMINAL
from batch.storage.engine import Database, db_in, db_now
from batch.storage.tables import batches

JOB_LEASE_S = 45.0  # with the sweep's period: a dead holder's job is found within a minute


class Job(Enum):
    """What may be done to a batch, and when."""

    INGEST = "ingest"      # while validating
    FINALIZE = "finalize"  # sealed, not yet terminal
    PURGE = "purge"        # terminal, not yet purged


_WAITS_FOR: dict[Job, tuple[sa.ColumnElement[bool], ...]] = {
    Job.INGEST: (batches.c.status == "validating",),
    Job.FINALIZE: (
        batches.c.status.in_(("finalizing", "cancelling", "in_progress")),
        batches.c.sealed_at.is_not(None),
    ),
    Job.PURGE: (batches.c.status.in_(TERMINAL), batches.c.purged_at.is_(None)),
}

_FREE: dict[str, None] = {"job_owner": None, "job_until": None}


def take_job_if_free(conn: sa.Connection, batch_id: int, job: Job, owner: str) -> int | None:
    """The new epoch, or None when there is no such job to do or another holds it."""
    return conn.execute(
        sa.update(batches)
        .where(batches.c.id == batch_id, *_WAITS_FOR[job], _is_free())
        .values(job_owner=owner, job_epoch=batches.c.job_epoch + 1, job_until=db_in(JOB_LEASE_S))
        .returning(batches.c.job_epoch)
    ).scalar_one_or_none()


def renew_job_if_held(conn: sa.Connection, batch_id: int, epoch: int, **progress: Any) -> bool:
    """False when the epoch moved on or the job is no longer wanted (a cancel frees it): stop at once."""
    done = conn.execute(
        sa.update(batches)
        .where(batches.c.id == batch_id, batches.c.job_epoch == epoch, batches.c.job_until.is_not(None))
        .values(job_until=db_in(JOB_LEASE_S), **progress)
    )
    return done.rowcount == 1


def release_job_if_held(conn: sa.Connection, batch_id: int, epoch: int) -> None:
    """Let another take it at once, for instance when this process shuts down."""
    conn.execute(
        sa.update(batches)
        .where(batches.c.id == batch_id, batches.c.job_epoch == epoch)
        .values(_FREE)
    )


def free_jobs_of(db: Database, dead: str) -> int:
    """Let others take at once what a dead process held. Returns how many."""
    with db.read() as conn:
        ids = list(conn.execute(sa.select(batches.c.id).where(batches.c.job_owner == dead)).scalars())
    for batch_id in ids:
        with db.write() as conn:
            held = (batches.c.id == batch_id, batches.c.job_owner == dead)
            conn.execute(sa.update(batches).where(*held).values(_FREE))
    return len(ids)


def waiting_jobs(
    conn: sa.Connection, job: Job, *, idle_s: float, limit: int, column: sa.Column[Any] = batches.c.id
) -> list[Any]:
    """Batches whose job nobody holds, `idle_s` after it became due: a lost bell or a dead holder."""
    due_since = {
        Job.INGEST: batches.c.created_at,
        Job.FINALIZE: batches.c.sealed_at,
        Job.PURGE: sa.func.coalesce(
            batches.c.completed_at, batches.c.failed_at, batches.c.expired_at, batches.c.cancelled_at
        ),
    }[job]
    query = (
        sa.select(column)
        .where(*_WAITS_FOR[job], _is_free(), due_since <= db_in(-idle_s))
        .order_by(batches.c.id)
        .limit(limit)
    )
    return list(conn.execute(query).scalars())


def unsealed_endings(conn: sa.Connection, limit: int) -> list[int]:
    """Open batches that are cancelling or past their deadline and not yet sealed."""
    query = (
        sa.select(batches.c.id)
        .where(
            batches.c.sealed_at.is_(None),
            sa.or_(
                batches.c.status == "cancelling",
                sa.and_(batches.c.status == "in_progress", batches.c.expires_at <= db_now()),
            ),
        )
        .order_by(batches.c.id)
        .limit(limit)
    )
    return list(conn.execute(query).scalars())


# What a sealed batch becomes when its files are there, and the time that it stamps.
PUBLISHED_AS = {
    "finalizing": ("completed", "completed_at"),
    "cancelling": ("cancelled", "cancelled_at"),
    "in_progress": ("expired", "expired_at"),
}


def publish_if_held(conn: sa.Connection, batch_id: int, epoch: int, *, source: str, **values: Any) -> str | None:
    """Files and terminal status in one statement; returns that status, None when the epoch moved on."""
    target, stamp = PUBLISHED_AS[source]
    done = conn.execute(
        sa.update(batches)
        .where(
            batches.c.id == batch_id,
            batches.c.status == source,
            batches.c.sealed_at.is_not(None),
            batches.c.job_epoch == epoch,
        )
        .values({"status": target, stamp: db_now(), "reserved_usd": 0.0, **_FREE, **values})
    )
    return target if done.rowcount else None


def note_purged_if_held(conn: sa.Connection, batch_id: int, epoch: int) -> None:
    conn.execute(
        sa.update(batches)
        .where(batches.c.id == batch_id, batches.c.job_epoch == epoch, batches.c.purged_at.is_(None))
        .values(purged_at=db_now(), **_FREE)
    )


def _is_free() -> sa.ColumnElement[bool]:
    return batches.c.job_until.is_(None) | (batches.c.job_until < db_now())
