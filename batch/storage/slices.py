"""Rows of slices, batch_lanes and line_progress: the small writes that claims, returns and rescues share.

Owns: cutting a piece off a slice, rewriting a line list, the advisory counters of batch_lanes, what
waiting lines have spent. The guards are the callers': leases.py (holders) and rescues.py (sweeps).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from batch.storage.engine import db_in, db_now, insert_for
from batch.storage.packing import pack_lines
from batch.storage.tables import batch_lanes, batches, line_progress, requests, results, slices

UNHELD: dict[str, Any] = {"owner": None, "lease_until": None, "reserved_usd": 0.0}
HAS_RESULT = sa.exists().where(results.c.batch_id == requests.c.batch_id, results.c.line == requests.c.line)


@dataclass(slots=True)
class Piece:
    """Lines that become a slice of their own. `hop` None keeps the lane; `suspicion` None inherits."""

    lines: Sequence[int]
    wait_s: float = 0.0
    hop: int | None = None
    suspicion: int | None = None
    solo: bool | None = None


class Tally:
    """Changes to batch_lanes, written at the end of a transaction in one order so that two never deadlock.

    `ready_lines` counts lines of ready slices that need not wait: wake_slices adds the others in time.
    """

    def __init__(self) -> None:
        self._changes: dict[tuple[int, int], list[int]] = {}
        self._recounts: set[tuple[int, int]] = set()

    def add(self, lane_id: int, batch_id: int, *, ready: int = 0, leased: int = 0) -> None:
        change = self._changes.setdefault((lane_id, batch_id), [0, 0])
        change[0] += ready
        change[1] += leased

    def recount(self, lane_id: int, batch_id: int) -> None:
        """Count this pair from its slices: the counters were found wrong."""
        self._recounts.add((lane_id, batch_id))

    def apply(self, conn: sa.Connection) -> None:
        for lane_id, batch_id in sorted(set(self._changes) | self._recounts):
            if (lane_id, batch_id) in self._recounts:
                recount_pair(conn, lane_id, batch_id)
                continue
            ready, leased = self._changes[lane_id, batch_id]
            if (ready or leased) and not _change(conn, lane_id, batch_id, ready, leased) and ready > 0:
                _insert_pair(conn, lane_id, batch_id)
                _change(conn, lane_id, batch_id, ready, leased)


def insert_piece(conn: sa.Connection, parent: Any, piece: Piece, tally: Tally) -> None:
    """A new ready slice with `piece`'s lines, otherwise like its parent's row."""
    hop = parent.hop if piece.hop is None else piece.hop
    lane_id = parent.lane_id if hop == parent.hop else parent.route[hop]
    waits = piece.wait_s > 0
    conn.execute(
        sa.insert(slices).values(
            batch_id=parent.batch_id, lane_id=lane_id, route=parent.route, hop=hop, priority=parent.priority,
            position=parent.position, lines=pack_lines(piece.lines), line_count=len(piece.lines),
            est_tokens=parent.est_tokens * len(piece.lines) // parent.line_count, prefix=parent.prefix,
            state="ready", epoch=0, not_before=db_in(piece.wait_s) if waits else None,
            suspicion=parent.suspicion if piece.suspicion is None else piece.suspicion,
            solo=parent.solo if piece.solo is None else piece.solo,
        )
    )  # fmt: skip
    tally.add(lane_id, parent.batch_id, ready=0 if waits else len(piece.lines))


def rewrite_lines(conn: sa.Connection, slice_id: int, lines: Sequence[int], **values: Any) -> None:
    """Replace a slice's list; the caller holds its row."""
    tokens = slices.c.est_tokens * len(lines) / slices.c.line_count
    conn.execute(
        sa.update(slices)
        .where(slices.c.id == slice_id)
        .values(
            lines=pack_lines(lines), line_count=len(lines), est_tokens=sa.cast(tokens, sa.BigInteger), **values
        )
    )


def save_progress(
    conn: sa.Connection, batch_id: int, spent: Iterable[tuple[int, dict[str, Any] | None, float]]
) -> None:
    """Remember what lines spent and until when they wait: (line, progress, seconds)."""
    now = int(conn.execute(sa.select(db_now())).scalar_one())
    rows = [
        {"batch_id": batch_id, "line": line, "progress": progress or {},
         "not_before": now + int(wait_s * 1000) if wait_s > 0 else None}
        for line, progress, wait_s in spent
    ]  # fmt: skip
    if not rows:
        return
    insert = insert_for(conn, line_progress)
    excluded = insert.excluded
    conn.execute(
        insert.on_conflict_do_update(
            index_elements=["batch_id", "line"],
            set_={"progress": excluded.progress, "not_before": excluded.not_before},
        ),
        rows,
    )


def recount_pair(conn: sa.Connection, lane_id: int, batch_id: int) -> None:
    """Set one row of batch_lanes to what its slices say."""
    total = sa.select(sa.func.coalesce(sa.func.sum(slices.c.line_count), 0))
    total = total.where(slices.c.lane_id == lane_id, slices.c.batch_id == batch_id)
    ready = total.where(slices.c.state == "ready", slices.c.not_before.is_(None))
    leased = total.where(slices.c.state == "leased")
    conn.execute(
        sa.update(batch_lanes)
        .where(batch_lanes.c.lane_id == lane_id, batch_lanes.c.batch_id == batch_id)
        .values(ready_lines=ready.scalar_subquery(), leased_lines=leased.scalar_subquery())
    )


def lock_batch(conn: sa.Connection, batch_id: int) -> Any | None:
    """The batch's row, locked: before any slice of the same transaction."""
    query = sa.select(batches).where(batches.c.id == batch_id).with_for_update(key_share=True)
    return conn.execute(query).first()


def without(lines: Sequence[int], removed: Iterable[int]) -> list[int]:
    gone = set(removed)
    return [line for line in lines if line not in gone]


def _moved(column: sa.Column[int], by: str) -> sa.ColumnElement[int]:
    moved = column + sa.bindparam(by, type_=column.type)
    return sa.case((moved > 0, moved), else_=0)


# Built once, as in results.py: every claim and every closed slice runs it.
_CHANGE = (
    sa.update(batch_lanes)
    .where(batch_lanes.c.lane_id == sa.bindparam("lane"), batch_lanes.c.batch_id == sa.bindparam("batch"))
    .values(
        ready_lines=_moved(batch_lanes.c.ready_lines, "ready"),
        leased_lines=_moved(batch_lanes.c.leased_lines, "leased"),
    )
)


def _change(conn: sa.Connection, lane_id: int, batch_id: int, ready: int, leased: int) -> bool:
    changed = conn.execute(_CHANGE, {"lane": lane_id, "batch": batch_id, "ready": ready, "leased": leased})
    return changed.rowcount > 0


def _insert_pair(conn: sa.Connection, lane_id: int, batch_id: int) -> None:
    insert = insert_for(conn, batch_lanes)
    source = sa.select(
        sa.literal(lane_id), batches.c.id, batches.c.project_id, batches.c.priority, batches.c.expires_at,
        sa.literal(0), sa.literal(0),
    ).where(batches.c.id == batch_id)  # fmt: skip
    conn.execute(
        insert.from_select([column.name for column in batch_lanes.c], source).on_conflict_do_nothing()
    )
