"""The life of a lease after its claim: renew, close, split, give back.

Owns: what the holder of a slice does with its row; docs/leases.md explains it before the code does.
Each statement repeats its guard (state, owner, epoch) in its WHERE. claims.py claims, results.py records,
rescues.py holds what happens to slices without a holder. The database's clock is the only one here.
Lock order: batch rows → slices, each ascending → results → batch_lanes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from batch.settings import LEASE_S
from batch.storage.claims import SliceClaim
from batch.storage.engine import Database, db_in
from batch.storage.packing import among, unpack_lines
from batch.storage.slices import UNHELD, Piece, Tally, insert_piece, lock_batch, rewrite_lines, save_progress
from batch.storage.tables import batches, results, slices


@dataclass(slots=True)
class Release:
    """A line that its holder lets go: what it has spent, how long to wait, whether to move to the next lane."""

    line: int
    progress: dict[str, Any] | None = None
    wait_s: float = 0.0
    to_next_lane: bool = False


_OF_LINES = (results.c.batch_id == sa.bindparam("batch"), among(results.c.line, "lines"))
_WITH_RESULT = sa.select(results.c.line).where(*_OF_LINES)
_COUNT_RESULTS = sa.select(sa.func.count()).select_from(results).where(*_OF_LINES)


def renew_if_held(db: Database, owner: str, held: Mapping[int, int]) -> set[int]:
    """Renew the leases of `held` (slice id → epoch). Returns the ids that are still held; the rest are lost."""
    if not held:
        return set()
    with db.write() as conn:
        mine = _lock_held(conn, owner, held)
        conn.execute(
            sa.update(slices)
            .where(among(slices.c.id, mine), slices.c.owner == owner, slices.c.state == "leased")
            .values(lease_until=db_in(LEASE_S))
        )
    return set(mine)


def close_if_held(conn: sa.Connection, owner: str, held: Mapping[int, int]) -> None:
    """Close those of `held` (slice id → epoch) that have no open line.

    Runs inside the recorder's transaction, after its results. Where a slice holds a reserve, its batch row
    must be locked already.
    """
    tally = Tally()
    for row in _lock_held(conn, owner, held).values():
        if count_results(conn, row.batch_id, unpack_lines(row.lines)) < row.line_count:
            continue
        conn.execute(
            sa.update(slices)
            .where(slices.c.id == row.id, slices.c.owner == owner, slices.c.epoch == row.epoch)
            .values(state="done", **UNHELD)
        )
        release_reserve(conn, row.batch_id, row.reserved_usd)
        tally.add(row.lane_id, row.batch_id, leased=-row.line_count)
    tally.apply(conn)


def give_back_if_held(
    db: Database, owner: str, claim: SliceClaim, released: Sequence[Release], *, keep: Sequence[int] = ()
) -> bool:
    """Let lines go, in one transaction with what each has spent; `keep` stay with the holder.

    Ready lines, lines that wait (grouped by minute) and lines for the next lane become slices of their own; lines
    that have a result meanwhile are dropped. Without `keep` the lease ends. Returns False, with nothing written,
    when the slice is not held any more.
    """
    with db.write() as conn:
        if claim.reserved_usd:
            lock_batch(conn, claim.batch_id)
        row = _lock_held(conn, owner, {claim.slice_id: claim.epoch}).get(claim.slice_id)
        if row is None:
            return False
        done = lines_with_result(conn, claim.batch_id, [item.line for item in released])
        still_open = [item for item in released if item.line not in done]
        save_progress(conn, claim.batch_id, [(r.line, r.progress, r.wait_s) for r in still_open if r.progress])
        tally = Tally()
        for piece in _pieces(row, still_open):
            insert_piece(conn, row, piece, tally)
        _shrink(conn, row, keep, tally)
        tally.apply(conn)
        return True


def lines_with_result(conn: sa.Connection, batch_id: int, lines: Collection[int]) -> set[int]:
    """Those of `lines` that have a result."""
    if not lines:
        return set()
    return set(conn.execute(_WITH_RESULT, {"batch": batch_id, "lines": lines}).scalars())


def count_results(conn: sa.Connection, batch_id: int, lines: Collection[int]) -> int:
    """How many of `lines` have a result."""
    return int(conn.execute(_COUNT_RESULTS, {"batch": batch_id, "lines": lines}).scalar_one())


def release_reserve(conn: sa.Connection, batch_id: int, amount: float) -> None:
    """Take `amount` dollars out of the batch's reserve. The batch row must be locked already."""
    if amount > 0:
        left = batches.c.reserved_usd - amount
        conn.execute(
            sa.update(batches)
            .where(batches.c.id == batch_id)
            .values(reserved_usd=sa.case((left > 1e-9, left), else_=0.0))
        )


def _lock_held(conn: sa.Connection, owner: str, held: Mapping[int, int]) -> dict[int, Any]:
    """The rows of `held` that still belong to `owner` with the same epoch, locked in ascending id."""
    query = (
        sa.select(slices)
        .where(among(slices.c.id, held), slices.c.owner == owner, slices.c.state == "leased")
        .order_by(slices.c.id)
        .with_for_update(key_share=True)
    )
    return {row.id: row for row in conn.execute(query) if row.epoch == held[row.id]}


def _pieces(row: Any, released: Iterable[Release]) -> list[Piece]:
    """Released lines by where and when they go on: this lane or the next, now or in which minute."""
    groups: dict[tuple[bool, int], list[Release]] = {}
    for item in released:
        to_next = item.to_next_lane and row.hop + 1 < len(row.route)
        minute = int(item.wait_s // 60) + 1 if item.wait_s > 0 else 0
        groups.setdefault((to_next, minute), []).append(item)
    return [
        Piece([item.line for item in items], min(item.wait_s for item in items), row.hop + to_next)
        for (to_next, _minute), items in groups.items()
    ]


def _shrink(conn: sa.Connection, row: Any, keep: Sequence[int], tally: Tally) -> None:
    """The held row after a release: fewer lines under the same lease, or done."""
    tally.add(row.lane_id, row.batch_id, leased=len(keep) - row.line_count)
    kept_reserve = row.reserved_usd * len(keep) / row.line_count
    release_reserve(conn, row.batch_id, row.reserved_usd - kept_reserve)
    if keep:
        rewrite_lines(conn, row.id, keep, reserved_usd=kept_reserve)
    else:
        conn.execute(sa.update(slices).where(slices.c.id == row.id).values(state="done", **UNHELD))
