"""What a person needs to know of one batch or of all lanes, read in few short queries.

Owns: reads only, for operations/explain_batch.py and providers_view.py.
May not touch: any row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from batch.domain.states import SliceState
from batch.storage.engine import db_now
from batch.storage.lanes import LANE_COLUMNS, LaneRow
from batch.storage.tables import batch_lanes, lanes, results, slices

FAILING_LINES = 5


@dataclass(frozen=True, slots=True)
class LaneWork(LaneRow):
    """One lane and the lines that the batch (or everybody) has there: advisory counts."""

    ready_lines: int
    leased_lines: int


@dataclass(frozen=True, slots=True)
class HeldLines:
    """Ready lines whose time has not come. `earliest` is milliseconds since the epoch; `ready` may go now."""

    held: int
    earliest: int | None
    ready: int


def lane_work(conn: sa.Connection, batch_id: int | None = None) -> list[LaneWork]:
    """The lanes in which the batch has open lines; without one every lane, with the open lines of all batches."""
    total = (
        sa.select(
            batch_lanes.c.lane_id,
            sa.cast(sa.func.sum(batch_lanes.c.ready_lines), sa.BigInteger).label("ready"),
            sa.cast(sa.func.sum(batch_lanes.c.leased_lines), sa.BigInteger).label("leased"),
        )
        .where(sa.true() if batch_id is None else batch_lanes.c.batch_id == batch_id)
        .group_by(batch_lanes.c.lane_id)
        .subquery()
    )
    query: sa.Select[Any] = (
        sa.select(*LANE_COLUMNS, sa.func.coalesce(total.c.ready, 0), sa.func.coalesce(total.c.leased, 0))
        .join_from(lanes, total, lanes.c.id == total.c.lane_id, isouter=batch_id is None)
        .order_by(lanes.c.provider, lanes.c.model, lanes.c.id)
    )
    return [LaneWork(*row) for row in conn.execute(query)]


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


def failures_of_batch(conn: sa.Connection, batch_id: int) -> list[dict[str, Any]]:
    """[{code, count, lines: the first few}] of failed lines, the most frequent first. Empty after a purge."""
    code = sa.func.coalesce(results.c.code, "unknown")
    failed = sa.and_(results.c.batch_id == batch_id, results.c.ok.is_(sa.false()))
    counted = conn.execute(
        sa.select(code, sa.func.count()).where(failed).group_by(code).order_by(sa.func.count().desc(), code)
    ).all()
    first = sa.select(results.c.line).where(failed).order_by(results.c.line).limit(FAILING_LINES)
    return [
        {"code": name, "count": count, "lines": list(conn.execute(first.where(code == name)).scalars())}
        for name, count in counted
    ]
