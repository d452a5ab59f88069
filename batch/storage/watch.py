"""What a pump asks every second or so, each in one statement: its batches, its lanes, work for it.

Owns: read-only views for worker processes. May not touch: anything; nothing here writes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from batch.storage.engine import db_now
from batch.storage.packing import among
from batch.storage.tables import batch_lanes, batches, lanes


@dataclass(frozen=True, slots=True)
class LanePause:
    """A lane's pause as it is now; `left_s` 0.0: not paused."""

    lane_id: int
    left_s: float
    code: str | None
    reason: str | None


_STOP_REASON = sa.case(
    (batches.c.sealed_at.is_not(None), "sealed"),
    (batches.c.status != "in_progress", "cancelled"),
    (batches.c.expires_at <= db_now(), "expired"),
    (batches.c.paused, "paused"),
)


def watch_batches(conn: sa.Connection, ids: Collection[int]) -> dict[int, str | None]:
    """Why no further line of these batches may be sent; None while one runs. A missing one is as good as sealed."""
    rows = conn.execute(sa.select(batches.c.id, _STOP_REASON).where(among(batches.c.id, ids)))
    return dict.fromkeys(ids, "sealed") | {row.id: row[1] for row in rows}


def watch_pauses(conn: sa.Connection, lane_ids: Iterable[int]) -> list[LanePause]:
    """The pauses of these lanes."""
    left_ms = sa.func.coalesce(lanes.c.paused_until - db_now(), 0)
    query = sa.select(lanes.c.id, left_ms, lanes.c.pause_code, lanes.c.pause_reason)
    rows = conn.execute(query.where(among(lanes.c.id, lane_ids)))
    return [LanePause(row[0], max(0.0, row[1] / 1000), row[2], row[3]) for row in rows]


def claimable_lanes(conn: sa.Connection, queues: Sequence[str] | None = None) -> list[int]:
    """Lanes (of these queues) that are not paused and have ready lines of a running batch."""
    query = (
        sa.select(lanes.c.id)
        .where(lanes.c.paused_until.is_(None) | (lanes.c.paused_until <= db_now()))
        .where(_has_ready_lines())
        .order_by(lanes.c.id)
    )
    if queues is not None:
        query = query.where(lanes.c.queue.in_(queues))
    return [int(i) for i in conn.execute(query).scalars()]


def paused_lanes(conn: sa.Connection) -> list[int]:
    """Paused lanes with ready lines of a running batch."""
    query = sa.select(lanes.c.id).where(lanes.c.paused_until > db_now(), _has_ready_lines()).order_by(lanes.c.id)
    return [int(i) for i in conn.execute(query).scalars()]


def _has_ready_lines() -> sa.ColumnElement[bool]:
    return (
        sa.exists()
        .where(batch_lanes.c.lane_id == lanes.c.id, batch_lanes.c.ready_lines > 0)
        .where(batches.c.id == batch_lanes.c.batch_id, batches.c.status == "in_progress")
        .where(~batches.c.paused, batches.c.sealed_at.is_(None))
    )
