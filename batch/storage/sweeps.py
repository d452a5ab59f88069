"""Periodic work, taken by whoever comes first.

Owns: the rows of `sweeps`: when each is due, and a lease so that one process runs it at a time. Any
number of beats and jobs workers, or none of the beats, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from batch.storage.engine import Database, db_now
from batch.storage.tables import sweeps

SWEEP_LEASE_S = 30.0  # of a process that died; a sweep that takes longer is safe to run twice at once


def ensure_sweeps(db: Database, names: Mapping[str, float]) -> None:
    """Make missing rows, due at once."""
    with db.read() as conn:
        missing = set(names) - set(conn.execute(sa.select(sweeps.c.name)).scalars())
    if not missing:
        return
    with db.write() as conn:
        insert = sqlite.insert(sweeps) if conn.dialect.name == "sqlite" else postgresql.insert(sweeps)
        for name in sorted(missing):
            conn.execute(insert.values(name=name, due_at=db_now()).on_conflict_do_nothing())


def due_sweeps(conn: sa.Connection) -> list[str]:
    """Names that are due and not being run, the longest overdue first."""
    free = sweeps.c.lease_until.is_(None) | (sweeps.c.lease_until < db_now())
    query = sa.select(sweeps.c.name).where(sweeps.c.due_at <= db_now(), free).order_by(sweeps.c.due_at)
    return list(conn.execute(query).scalars())


def take_if_due(db: Database, name: str, *, lease_s: float = SWEEP_LEASE_S) -> bool:
    """True when this process may run the sweep now."""
    free = sweeps.c.lease_until.is_(None) | (sweeps.c.lease_until < db_now())
    with db.write() as conn:
        taken = conn.execute(
            sa.update(sweeps)
            .where(sweeps.c.name == name, sweeps.c.due_at <= db_now(), free)
            .values(lease_until=db_now() + int(lease_s * 1000))
        )
        return taken.rowcount == 1


def finish_sweep(db: Database, name: str, *, every_s: float, report: str) -> None:
    """Give the sweep back, due again in `every_s`; `report` says what it did, for people."""
    with db.write() as conn:
        conn.execute(
            sa.update(sweeps)
            .where(sweeps.c.name == name)
            .values(due_at=db_now() + int(every_s * 1000), lease_until=None, last_report=report)
        )


def hasten_sweep(db: Database, name: str) -> None:
    """Make a sweep due now."""
    with db.write() as conn:
        conn.execute(sa.update(sweeps).where(sweeps.c.name == name).values(due_at=db_now()))
