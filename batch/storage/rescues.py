"""Slices without a holder: expired, waiting, paused in their lane, or missing.

Owns: what sweeps do with slices, each pass bounded. docs/leases.md explains suspicion and solo.
May not touch: slices under a live lease. Locks slices only and skips locked ones; the exception is a slice
with a reserve, whose batch row is locked first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from batch.settings import LEASE_S, RENEW_EVERY_S, SLICE_MAX_LINES
from batch.storage.claims import SOLO_CRASHES
from batch.storage.engine import Database, db_in, db_now
from batch.storage.leases import count_results, lines_with_result, release_reserve
from batch.storage.packing import pack_lines, unpack_lines
from batch.storage.slices import HAS_RESULT, UNHELD, Piece, Tally, insert_piece, lock_batch, recount_pair, without
from batch.storage.tables import batch_lanes, batches, lanes, line_progress, requests, results, slices

HALVE_FROM = 2  # crashes after which a further one halves the slice
STALE_S = RENEW_EVERY_S  # a look that had to wait longer for the write proves nothing: its holder waited too


@dataclass(frozen=True, slots=True)
class Doomed:
    """A solo line that kept killing workers, now held by the sweep so that its failure can be recorded."""

    slice_id: int
    epoch: int
    batch_id: int
    batch_public_id: str
    line: int
    custom_id: str


def expire_leases(db: Database, *, dead: str | None = None, limit: int = 200) -> int:
    """Take slices from holders whose lease ran out, or from one that is `dead`: ready again, suspicion + 1. How many.

    From the third crash without a result on, a slice is halved, down to one line marked solo.
    """
    with db.read() as conn:
        seen_at = db.now(conn)
        found = conn.execute(_expired(dead).order_by(slices.c.lease_until).limit(limit)).fetchall()
    groups: dict[int | None, list[int]] = {}  # a batch with a reserve has a transaction of its own
    for row in found:
        groups.setdefault(row.batch_id if row.reserved_usd else None, []).append(row.id)
    return sum(_expire(db, ids, seen_at, dead, batch_id) for batch_id, ids in groups.items())


def take_doomed(db: Database, owner: str, *, limit: int = 50) -> list[Doomed]:
    """Lease solo lines that crashed their worker three times, so that `owner` can record their failure."""
    with db.write() as conn:
        chosen = conn.execute(
            sa.select(slices.c.id)
            .where(slices.c.state == "ready", slices.c.solo, slices.c.suspicion >= SOLO_CRASHES)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).scalars()
        return [_doom(conn, slice_id, owner) for slice_id in sorted(chosen)]


def wake_slices(db: Database, *, limit: int = 500) -> int:
    """Slices whose waiting time has passed become claimable. Returns how many."""
    due = sa.select(slices.c.id).where(slices.c.state == "ready", slices.c.not_before <= db_now()).limit(limit)
    with db.read() as conn:
        if conn.execute(due.limit(1)).first() is None:
            return 0
    tally = Tally()
    with db.write() as conn:
        ids = list(conn.execute(due.with_for_update(skip_locked=True)).scalars())
        woken = conn.execute(
            sa.update(slices)
            .where(slices.c.id.in_(ids), slices.c.state == "ready", slices.c.not_before.is_not(None))
            .values(not_before=None)
            .returning(slices.c.lane_id, slices.c.batch_id, slices.c.line_count)
        )
        for row in woken:
            tally.add(row.lane_id, row.batch_id, ready=row.line_count)
        tally.apply(conn)
    return len(ids)


def hop_slices(
    db: Database, lane_id: int, *, may_move: Callable[[Sequence[int]], bool] = lambda route: True, limit: int = 100
) -> int:
    """Move ready slices of a paused lane to the next lane of their route that is not paused, where `may_move`
    says so of their route (lane ids). Returns how many."""
    tally = Tally()
    with db.write() as conn:
        paused = set(conn.execute(sa.select(lanes.c.id).where(lanes.c.paused_until > db_now())).scalars())
        if lane_id not in paused:
            return 0
        ready = (slices.c.lane_id == lane_id) & (slices.c.state == "ready")
        found = conn.execute(
            sa.select(slices.c.id, slices.c.route).where(ready, slices.c.hop < _last_hop(conn), ~slices.c.solo)
        )
        ids = [row.id for row in found if may_move(row.route)][:limit]
        rows = conn.execute(
            sa.select(slices).where(slices.c.id.in_(ids), ready).with_for_update(skip_locked=True)
        ).fetchall()
        moved = [row for row in rows if _hop(conn, row, paused, tally)]
        tally.apply(conn)
    return len(moved)


def close_resolved(db: Database, *, limit: int = 200, after_id: int = 0) -> tuple[int, int]:
    """Close ready slices that have no open line (a zombie's successes landed). (closed, id to go on from; 0: end)."""
    with db.read() as conn:
        rows = conn.execute(
            sa.select(slices.c.id, slices.c.batch_id, slices.c.lines, slices.c.line_count)
            .where(slices.c.state == "ready", slices.c.id > after_id, slices.c.epoch > 0)
            .order_by(slices.c.id)
            .limit(limit)
        ).fetchall()
        done = [r for r in rows if count_results(conn, r.batch_id, unpack_lines(r.lines)) == r.line_count]
    tally = Tally()
    with db.write() as conn:
        for row in done:
            closed = conn.execute(
                sa.update(slices)
                .where(slices.c.id == row.id, slices.c.state == "ready")
                .values(state="done", not_before=None)
                .returning(slices.c.lane_id)
            ).first()
            if closed is not None:
                tally.recount(closed.lane_id, row.batch_id)
        tally.apply(conn)
    return len(done), rows[-1].id if len(rows) == limit else 0


def stranded_batches(conn: sa.Connection, *, limit: int = 20) -> list[int]:
    """Open batches that have more open lines than their ready and leased slices list: some line stands nowhere."""
    standing = (
        sa.select(sa.func.coalesce(sa.func.sum(slices.c.line_count), 0))
        .where(slices.c.batch_id == batches.c.id, slices.c.state.in_(("ready", "leased")))
        .scalar_subquery()
    )
    copies = (
        sa.select(sa.func.count())
        .where(requests.c.batch_id == batches.c.id, requests.c.copy_of.is_not(None), ~HAS_RESULT)
        .scalar_subquery()
    )
    left = batches.c.total - batches.c.completed - batches.c.failed
    query = (
        sa.select(batches.c.id)
        .where(batches.c.status == "in_progress", batches.c.sealed_at.is_(None))
        .where(sa.case((left > standing, left - copies > standing), else_=sa.false()))  # counts copies only then
        .limit(limit)
    )
    return [int(i) for i in conn.execute(query).scalars()]


def cut_missing_lines(db: Database, batch_id: int, *, limit: int = 10_000) -> int:
    """New slices for open lines of an open batch that stand in no slice. Returns how many lines were found."""
    with db.write() as conn:
        batch = lock_batch(conn, batch_id)
        if batch is None or batch.status != "in_progress" or batch.sealed_at is not None:
            return 0
        rows = conn.execute(sa.select(slices).where(slices.c.batch_id == batch_id).order_by(slices.c.id)).fetchall()
        standing = {line for r in rows if r.state in {"ready", "leased"} for line in unpack_lines(r.lines)}
        missing = [line for line in _open_lines(conn, batch_id) if line not in standing][:limit]
        tally = Tally()
        for parent, lines in _by_parent(rows, missing):
            for start in range(0, len(lines), SLICE_MAX_LINES):
                insert_piece(conn, parent, Piece(lines[start : start + SLICE_MAX_LINES], solo=False), tally)
        tally.apply(conn)
        return len(missing)


def end_leftovers(db: Database, *, limit: int = 1000) -> int:
    """What a give-back left that met a seal or a zombie's success: slices of ended batches, progress of done lines."""
    ended = batches.c.status.in_(("cancelled", "expired"))  # also the name of a slice's state
    state = sa.select(batches.c.status).where(batches.c.id == slices.c.batch_id).scalar_subquery()
    left = sa.select(slices.c.id).join(batches, batches.c.id == slices.c.batch_id)
    left = left.where(slices.c.state == "ready", ended)
    spent = sa.select(line_progress.c.batch_id, line_progress.c.line).join(
        results, (results.c.batch_id == line_progress.c.batch_id) & (results.c.line == line_progress.c.line)
    )
    with db.read() as conn:
        ids = list(conn.execute(left.limit(limit)).scalars())
        keys = [{"batch": row.batch_id, "done": row.line} for row in conn.execute(spent.limit(limit))]
    if ids or keys:
        with db.write() as conn:
            conn.execute(sa.update(slices).where(slices.c.id.in_(ids), slices.c.state == "ready").values(state=state))
            of_key = (line_progress.c.batch_id == sa.bindparam("batch"), line_progress.c.line == sa.bindparam("done"))
            if keys:
                conn.execute(sa.delete(line_progress).where(*of_key), keys)
    return len(ids) + len(keys)


def recount_lanes(db: Database) -> int:
    """Set every counter of batch_lanes from its slices, and forget pairs of batches that are over."""
    with db.read() as conn:
        pairs = conn.execute(
            sa.select(batch_lanes.c.lane_id, batch_lanes.c.batch_id, batches.c.sealed_at)
            .outerjoin(batches, batches.c.id == batch_lanes.c.batch_id)
            .order_by(batch_lanes.c.lane_id, batch_lanes.c.batch_id)
        ).fetchall()
    for start in range(0, len(pairs), 50):  # short transactions: these rows are on the claim's path
        with db.write() as conn:
            for pair in pairs[start : start + 50]:
                if pair.sealed_at is None:
                    recount_pair(conn, pair.lane_id, pair.batch_id)
                else:
                    conn.execute(
                        sa.delete(batch_lanes).where(
                            batch_lanes.c.lane_id == pair.lane_id, batch_lanes.c.batch_id == pair.batch_id
                        )
                    )
    return len(pairs)


def _expired(dead: str | None) -> sa.Select[Any]:
    is_over = slices.c.lease_until < db_now() if dead is None else slices.c.owner == dead
    return sa.select(slices).where(slices.c.state == "leased", is_over)


def _expire(db: Database, ids: Collection[int], seen_at: int, dead: str | None, batch_id: int | None) -> int:
    tally, count = Tally(), 0
    with db.write() as conn:
        if batch_id is not None:
            lock_batch(conn, batch_id)
        if db.now(conn) - seen_at > STALE_S * 1000:
            return 0
        chosen = _expired(dead).where(slices.c.id.in_(ids)).order_by(slices.c.id)
        for row in conn.execute(chosen.with_for_update(skip_locked=True)).fetchall():
            release_reserve(conn, row.batch_id, row.reserved_usd)
            _return_crashed(conn, row, tally)
            count += 1
        tally.apply(conn)
    return count


def _return_crashed(conn: sa.Connection, row: Any, tally: Tally) -> None:
    """One expired slice: closed when nothing is open, halved when it keeps crashing, else ready again."""
    listed = unpack_lines(row.lines)
    done = lines_with_result(conn, row.batch_id, listed)
    lines = without(listed, done)
    tally.add(row.lane_id, row.batch_id, leased=-row.line_count)
    if not lines:
        _set_free(conn, row, state="done")
        return
    halve = not row.solo and row.suspicion >= HALVE_FROM
    if halve and len(lines) > 1:
        middle = len(lines) // 2
        for half in (lines[:middle], lines[middle:]):
            alone = len(half) == 1
            insert_piece(conn, row, Piece(half, suspicion=0 if alone else HALVE_FROM, solo=alone), tally)
        _set_free(conn, row, state="done")
        return
    suspicion = 0 if halve else row.suspicion + 1  # a line alone starts to count its own crashes
    packed = {"lines": pack_lines(lines), "line_count": len(lines)}
    _set_free(conn, row, state="ready", suspicion=suspicion, solo=row.solo or halve, **packed)
    tally.add(row.lane_id, row.batch_id, ready=len(lines))


def _set_free(conn: sa.Connection, row: Any, **values: Any) -> None:
    conn.execute(
        sa.update(slices)
        .where(slices.c.id == row.id, slices.c.state == "leased", slices.c.epoch == row.epoch)
        .values(not_before=None, **UNHELD, **values)
    )


def _doom(conn: sa.Connection, slice_id: int, owner: str) -> Doomed:
    """The caller holds the slice's lock."""
    row = conn.execute(
        sa.update(slices)
        .where(slices.c.id == slice_id, slices.c.state == "ready")
        .values(state="leased", owner=owner, epoch=slices.c.epoch + 1, lease_until=db_in(LEASE_S))
        .returning(slices.c.id, slices.c.epoch, slices.c.batch_id, slices.c.lines)
    ).one()
    [line] = unpack_lines(row.lines)
    named = conn.execute(
        sa.select(requests.c.custom_id, batches.c.public_id)
        .join(batches, batches.c.id == requests.c.batch_id)
        .where(requests.c.batch_id == row.batch_id, requests.c.line == line)
    ).one()
    return Doomed(row.id, row.epoch, row.batch_id, named.public_id, line, named.custom_id)


def _last_hop(conn: sa.Connection) -> sa.ColumnElement[int]:
    length = sa.func.json_array_length if conn.dialect.name == "sqlite" else sa.func.jsonb_array_length
    return length(slices.c.route) - 1


def _hop(conn: sa.Connection, row: Any, paused: set[int], tally: Tally) -> bool:
    hop = next((i for i in range(row.hop + 1, len(row.route)) if row.route[i] not in paused), None)
    if hop is None:
        return False
    insert_piece(conn, row, Piece(unpack_lines(row.lines), hop=hop), tally)
    conn.execute(sa.update(slices).where(slices.c.id == row.id).values(state="done", not_before=None))
    tally.add(row.lane_id, row.batch_id, ready=-row.line_count if row.not_before is None else 0)
    return True


def _open_lines(conn: sa.Connection, batch_id: int) -> list[int]:
    own = requests.c.copy_of.is_(None)  # a copy takes another line's answer: operations/dedupe.py
    query = sa.select(requests.c.line).where(requests.c.batch_id == batch_id, own, ~HAS_RESULT)
    return list(conn.execute(query.order_by(requests.c.line)).scalars())


def _by_parent(rows: Sequence[Any], missing: Sequence[int]) -> list[tuple[Any, list[int]]]:
    """Missing lines grouped by the newest slice that listed them, else by the batch's first: it knows the route."""
    if not rows:
        return []
    listed = {line: row for row in rows for line in unpack_lines(row.lines)}
    groups: dict[int, tuple[Any, list[int]]] = {}
    for line in missing:
        parent = listed.get(line, rows[0])
        groups.setdefault(parent.id, (parent, []))[1].append(line)
    return list(groups.values())
