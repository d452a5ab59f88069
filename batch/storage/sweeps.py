"""Periodic work, taken by whoever comes first.

Owns: the rows of `sweeps`: when each is due, and a lease so that one process runs it at a time. Any
number of beats and jobs workers, or none of the beats, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from batch.storage.engine import Database, db_in, db_now, insert_for
from batch.storage.tables import sweeps

SWEEP_LEASE_S = 30.0  # of a process that died; a sweep that takes longer is safe to run twice at once


def ensure_sweeps(db: Database, names: Mapping[str, float]) -> None:
    """Make missing rows, due at once."""
    with db.read() as conn:
        missing = set(names) - set(conn.execute(sa.select(sweeps.c.name)).scalars())
    if not missing:
        return
    with db.write() as conn:
        insert = insert_for(conn, sweeps)
        for name in sorted(missing):
            conn.execute(insert.values(name=name, due_at=db_now()).on_conflict_do_nothing())


def due_sweeps(conn: sa.Connection, names: Mapping[str, float]) -> list[str]:
    """Those of `names` (with their periods) that are due and not being run, the longest overdue first."""
    due = sa.or_(*(_is_due(name, every_s) for name, every_s in names.items()))
    return list(conn.execute(sa.select(sweeps.c.name).where(due).order_by(sweeps.c.due_at)).scalars())


def take_if_due(db: Database, name: str, *, every_s: float) -> bool:
    """True when this process may run the sweep now."""
    with db.write() as conn:
        lease = sa.update(sweeps).where(_is_due(name, every_s)).values(lease_until=db_in(SWEEP_LEASE_S))
        return conn.execute(lease).rowcount == 1


def finish_sweep(db: Database, name: str, *, every_s: float, report: str) -> None:
    """Give the sweep back, due again in `every_s`; `report` says what it did, for people."""
    with db.write() as conn:
        conn.execute(
            sa.update(sweeps)
            .where(sweeps.c.name == name)
            .values(due_at=db_in(every_s), lease_until=None, last_report=report)
        )


def _is_due(name: str, every_s: float) -> sa.ColumnElement[bool]:
    """What lies further ahead than it can have been put was put there before the clock was set back: it is over."""

    def is_over(at: sa.Column[int], span_s: float) -> sa.ColumnElement[bool]:
        return (at <= db_now()) | (at > db_in(span_s))

    free = sweeps.c.lease_until.is_(None) | is_over(sweeps.c.lease_until, SWEEP_LEASE_S)
    return (sweeps.c.name == name) & is_over(sweeps.c.due_at, every_s) & free
