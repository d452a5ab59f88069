"""Lines that are held back for a time: given back with `not_before`, by batch.

Owns: reads only, for operations/eta.py. May not touch: any row.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from batch.domain.states import SliceState
from batch.storage.engine import db_now
from batch.storage.tables import slices


@dataclass(frozen=True, slots=True)
class HeldLines:
    """Ready lines whose time has not come. `earliest` is milliseconds since the epoch; `ready` may go now."""

    held: int
    earliest: int | None
    ready: int


def held_lines(conn: sa.Connection, batch_id: int) -> HeldLines:
    """Counts by slices: lines that have a result since their slice was cut are still in them."""
    waits = slices.c.not_before.is_not(None) & (slices.c.not_before > db_now())
    row = conn.execute(
        sa.select(
            sa.func.coalesce(sa.func.sum(sa.case((waits, slices.c.line_count), else_=0)), 0),
            sa.func.min(sa.case((waits, slices.c.not_before))),
            sa.func.coalesce(sa.func.sum(sa.case((waits, 0), else_=slices.c.line_count)), 0),
        ).where(slices.c.batch_id == batch_id, slices.c.state == SliceState.READY)
    ).one()
    return HeldLines(int(row[0]), row[1], int(row[2]))
