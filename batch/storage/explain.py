"""What a person needs to know of one batch or of all lanes, read in few short queries.

Owns: reads only, for operations/explain_batch.py and providers_view.py.
May not touch: any row.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from batch.domain.states import SliceState
from batch.storage.engine import db_now
from batch.storage.tables import batch_lanes, lanes, results, slices

FAILING_LINES = 5


@dataclass(frozen=True, slots=True)
class LaneWork:
    """One lane as the batch (or everybody) sees it. Times are milliseconds; lines are advisory counts."""

    lane_id: int
    provider: str
    key_id: str
    model: str
    queue: str
    paused_until: int | None
    pause_code: str | None
    pause_reason: str | None
    ready_lines: int
    leased_lines: int

    def is_paused(self, now_ms: int) -> bool:
        return self.paused_until is not None and self.paused_until > now_ms


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Lines that failed for one reason, with the first few line numbers."""

    code: str
    count: int
    lines: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HeldLines:
    """Ready lines whose time has not come. `earliest` is milliseconds since the epoch; `ready` may go now."""

    held: int
    earliest: int | None
    ready: int


def work_of_batch(conn: sa.Connection, batch_id: int) -> list[LaneWork]:
    """The lanes in which the batch has open lines."""
    return _work(conn, batch_lanes.c.batch_id == batch_id)


def work_of_all(conn: sa.Connection) -> list[LaneWork]:
    """Every lane, with its open lines of all batches."""
    return _work(conn, None)


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


def failures_of_batch(conn: sa.Connection, batch_id: int) -> list[FailureGroup]:
    """Failed lines by code, the most frequent first. Empty after a purge."""
    code = sa.func.coalesce(results.c.code, "unknown")
    where = sa.and_(results.c.batch_id == batch_id, results.c.ok.is_(sa.false()))
    counted = conn.execute(
        sa.select(code, sa.func.count()).where(where).group_by(code).order_by(sa.func.count().desc(), code)
    ).all()
    return [FailureGroup(name, number, _first_lines(conn, where, code == name)) for name, number in counted]


def _work(conn: sa.Connection, where: sa.ColumnElement[bool] | None) -> list[LaneWork]:
    total = (
        sa.select(
            batch_lanes.c.lane_id,
            sa.func.sum(batch_lanes.c.ready_lines).label("ready"),
            sa.func.sum(batch_lanes.c.leased_lines).label("leased"),
        )
        .where(sa.true() if where is None else where)
        .group_by(batch_lanes.c.lane_id)
        .subquery()
    )
    query = sa.select(
        lanes.c.id, lanes.c.provider, lanes.c.key_id, lanes.c.model, lanes.c.queue, lanes.c.paused_until,
        lanes.c.pause_code, lanes.c.pause_reason,
        sa.func.coalesce(total.c.ready, 0), sa.func.coalesce(total.c.leased, 0),
    ).order_by(lanes.c.provider, lanes.c.model, lanes.c.id)  # fmt: skip
    query = query.join_from(lanes, total, lanes.c.id == total.c.lane_id, isouter=where is None)
    return [LaneWork(*row[:8], int(row[8]), int(row[9])) for row in conn.execute(query)]


def _first_lines(
    conn: sa.Connection, where: sa.ColumnElement[bool], code: sa.ColumnElement[bool]
) -> tuple[int, ...]:
    rows = conn.execute(
        sa.select(results.c.line).where(where, code).order_by(results.c.line).limit(FAILING_LINES)
    ).scalars()
    return tuple(int(line) for line in rows)
