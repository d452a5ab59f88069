"""Claiming: which slice a process works on next, and its open lines.

Owns: the two steps of a claim (the batch whose turn it is from the small batch_lanes rows, then its first
ready slice by a partial index; no sort over slices), the reserve of a batch under a budget, and
loading. leases.py holds what happens to a slice afterwards; docs/leases.md explains both.
Lock order: batch rows → slices, each ascending → results → batch_lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from batch.domain.outcome import Usage
from batch.domain.shares import Contender, Shares
from batch.settings import LEASE_S
from batch.storage.engine import Database, db_in, db_now
from batch.storage.packing import among, unpack_lines
from batch.storage.slices import HAS_RESULT, Piece, Tally, insert_piece, lock_batch, rewrite_lines, without
from batch.storage.tables import batch_lanes, batches, files, line_progress, requests, slices
from batch.storage.webhooks import enqueue_event

SOLO_CRASHES = 3  # a solo line that crashed its worker this often is given up as worker_lost
_EMPTY_PICKS = 16  # stale counters looked through per claim
_BATCHES_HELD = 32


@dataclass(slots=True)
class SliceClaim:
    """A leased slice. `lines` in sending order; `expires_at` in milliseconds; `route` are lane ids, `hop` its index.

    `left_s` is the time to the deadline by the database's clock: workers' own clocks may be wrong by hours.
    """

    slice_id: int
    epoch: int
    lane_id: int
    route: list[int]
    hop: int
    lines: list[int]
    priority: int
    solo: bool
    prefix: str | None
    reserved_usd: float
    suspicion: int
    batch_id: int
    batch_public_id: str
    project_id: int
    endpoint: str
    options: dict[str, Any]
    input_blob: str
    expires_at: int | None
    left_s: float | None


@dataclass(slots=True)
class OpenLine:
    """A line without a result. `body` is UTF-8 JSON, or None when it stands in the blob at offset and length."""

    line: int
    custom_id: str
    body: bytes | None
    blob_offset: int | None
    blob_length: int | None
    est_input: int
    est_output: int
    progress: dict[str, Any] | None
    wait_s: float = 0.0  # until its not_before


CostOf = Callable[[Usage], float]  # US dollars


@dataclass(slots=True)
class _Taking:
    """One claim's transaction: who claims in which lane, and what has been taken so far."""

    conn: sa.Connection
    lane_id: int
    owner: str
    may_take_solo: bool
    rows: list[Any] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


def claim_slices(
    db: Database,
    lane_id: int,
    owner: str,
    *,
    want_lines: int,
    held_batches: Collection[int] = frozenset(),
    cost_of: CostOf | None = None,
    may_take_solo: bool = True,
    max_slices: int = 16,
) -> list[SliceClaim]:
    """Lease ready slices of one lane, fairly, until `want_lines` are taken or none is left.

    With `want_lines` ≤ 0, at most one slice of a batch that is not among `held_batches` (while those are
    fewer than 32). A batch under a budget is claimed in a transaction of its own, at what `cost_of` says.
    """
    contenders, budgeted = _contenders(db, lane_id, max_slices + (len(held_batches) if want_lines <= 0 else 0))
    shares = Shares(contenders)

    def allowed(contender: Contender) -> bool:
        return want_lines > 0 or contender.batch_id not in held_batches

    if want_lines <= 0 and len(held_batches) >= _BATCHES_HELD:
        return []
    first = shares.pick(allowed)
    if first is None:
        return []
    with db.write() as conn:
        taking = _Taking(conn, lane_id, owner, may_take_solo)
        if first.batch_id in budgeted:
            _take_within_budget(taking, first.batch_id, cost_of or (lambda _usage: 0.0))
        else:
            _take_fairly(taking, shares, allowed, budgeted, want_lines, max_slices)
        taking.tally.apply(conn)
        return _as_claims(taking)


def load_open_lines(conn: sa.Connection, claim: SliceClaim) -> list[OpenLine]:
    """The claim's lines that have no result yet, in its order, with what they spent before."""
    given = {"batch": claim.batch_id, "lines": claim.lines}
    found = conn.execute(_OPEN_LINES[conn.dialect.name], given).fetchall()
    spent = {line: (progress, max(0.0, wait / 1000)) for line, progress, wait in conn.execute(_PROGRESS, given)}
    lines = {}
    for line, custom_id, text, offset, length, est_input, est_output in found:
        progress, wait_s = spent.get(line, (None, 0.0))
        raw = text.encode() if isinstance(text, str) else text
        lines[line] = OpenLine(line, custom_id, raw, offset, length, est_input, est_output, progress, wait_s)
    return [lines[line] for line in claim.lines if line in lines]


def _open_lines(body: sa.ColumnElement[Any]) -> sa.Select[Any]:
    return sa.select(
        requests.c.line, requests.c.custom_id, body, requests.c.blob_offset, requests.c.blob_length,
        requests.c.est_input, requests.c.est_output,
    ).where(requests.c.batch_id == sa.bindparam("batch"), among(requests.c.line, "lines"), ~HAS_RESULT)  # fmt: skip


# Built once, as in results.py; the bytes as they are, where a database's driver has them.
_OPEN_LINES = {
    "sqlite": _open_lines(sa.cast(requests.c.body, sa.LargeBinary)),
    "postgresql": _open_lines(requests.c.body),
}
_PROGRESS = sa.select(
    line_progress.c.line, line_progress.c.progress, sa.func.coalesce(line_progress.c.not_before - db_now(), 0)
).where(line_progress.c.batch_id == sa.bindparam("batch"), among(line_progress.c.line, "lines"))


_SIBLINGS = (batch_lanes.c.priority, batch_lanes.c.project_id)
_TURN = (
    sa.case((batch_lanes.c.ready_lines > 0, 0), else_=1), batch_lanes.c.leased_lines,
    batch_lanes.c.deadline.nulls_last(), batch_lanes.c.batch_id,
)  # fmt: skip
_RANKED = (
    sa.select(
        batch_lanes.c.batch_id, batch_lanes.c.project_id, batch_lanes.c.priority, batch_lanes.c.deadline,
        batch_lanes.c.ready_lines, batch_lanes.c.leased_lines, batches.c.budget_usd,
        sa.func.sum(batch_lanes.c.leased_lines).over(partition_by=_SIBLINGS).label("siblings_leased"),
        sa.func.row_number().over(partition_by=_SIBLINGS, order_by=_TURN).label("turn"),
    )
    .join(batches, batches.c.id == batch_lanes.c.batch_id)
    .where(batch_lanes.c.lane_id == sa.bindparam("lane"))
    .where((batch_lanes.c.ready_lines > 0) | (batch_lanes.c.leased_lines > 0))
    .where(batches.c.status == "in_progress", ~batches.c.paused, batches.c.sealed_at.is_(None))
    .subquery()
)  # fmt: skip
_FIRST = sa.select(_RANKED).where(_RANKED.c.turn <= sa.bindparam("deep"))


def _contenders(db: Database, lane_id: int, deep: int) -> tuple[list[Contender], set[int]]:
    """The `deep` batches of each class and project whose turn is first, and what the others hold, as one batch 0
    with nothing ready: with a thousand open batches a claim must not carry a thousand rows."""
    with db.read() as conn:
        rows = conn.execute(_FIRST, {"lane": lane_id, "deep": deep}).fetchall()
    others: dict[tuple[int, int], int] = {}
    for row in rows:
        key = (row.priority, row.project_id)
        others[key] = others.get(key, int(row.siblings_leased)) - row.leased_lines
    contenders = [Contender(*row[:6]) for row in rows]
    contenders += [Contender(0, project_id, priority, None, 0, held) for (priority, project_id), held in others.items()]
    return contenders, {row.batch_id for row in rows if row.budget_usd is not None}


def _take_fairly(
    taking: _Taking, shares: Shares, allowed: Callable[[Contender], bool], budgeted: set[int], want_lines: int,
    max_slices: int,
) -> None:  # fmt: skip
    """Slices one by one, each from the batch whose turn it is; stops where a budgeted batch's turn comes."""
    misses = 0
    while len(taking.rows) < max_slices and misses < _EMPTY_PICKS:
        contender = shares.pick(allowed)
        if contender is None or contender.batch_id in budgeted:
            return
        row = _lease(taking, _LEASE_FIRST[taking.may_take_solo], lane=taking.lane_id, batch=contender.batch_id)
        if row is None:
            misses += 1
            shares.exhaust(contender)
            taking.tally.recount(taking.lane_id, contender.batch_id)
            continue
        shares.take(contender, row.line_count)
        want_lines -= row.line_count
        if want_lines <= 0:
            return


def _first_ready(may_take_solo: bool) -> sa.Select[Any]:
    """The first ready slice by the partial index; others' locks are skipped, no sort is made."""
    query = (
        sa.select(slices.c.id)
        .where(slices.c.lane_id == sa.bindparam("lane"), slices.c.batch_id == sa.bindparam("batch"))
        .where(slices.c.state == "ready", slices.c.not_before.is_(None))
        .order_by(slices.c.priority, slices.c.position, slices.c.id)  # halves of one slice share its position
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if may_take_solo:
        return query.where(~slices.c.solo | (slices.c.suspicion < SOLO_CRASHES))
    return query.where(~slices.c.solo)


def _leasing(slice_id: sa.ColumnElement[int]) -> sa.sql.dml.ReturningUpdate[Any]:
    return (
        sa.update(slices)
        .where(slices.c.id == slice_id, slices.c.state == "ready")
        .values(
            state="leased", owner=sa.bindparam("holder", type_=slices.c.owner.type), epoch=slices.c.epoch + 1,
            reserved_usd=sa.bindparam("reserve", type_=slices.c.reserved_usd.type),
            lease_until=db_in(LEASE_S),
        )
        .returning(*slices.c)
    )  # fmt: skip


# Built once, as in results.py. By whether a line that must be alone may be taken.
_FIRST_READY = {may_take_solo: _first_ready(may_take_solo) for may_take_solo in (False, True)}
_LEASE_FIRST = {may_take_solo: _leasing(query.scalar_subquery()) for may_take_solo, query in _FIRST_READY.items()}
_LEASE = _leasing(sa.bindparam("slice", type_=slices.c.id.type))


def _lease(taking: _Taking, statement: sa.Executable, *, reserve: float = 0.0, **which: int) -> Any | None:
    given = {"holder": taking.owner, "reserve": reserve, **which}
    row = taking.conn.execute(statement, given).first()
    if row is not None:
        taking.rows.append(row)
        taking.may_take_solo &= not row.solo
        taking.tally.add(row.lane_id, row.batch_id, ready=-row.line_count, leased=row.line_count)
    return row


def _take_within_budget(taking: _Taking, batch_id: int, cost_of: CostOf) -> None:
    """One slice, cut to what the budget still allows. With nothing reserved and no line affordable: pause."""
    conn, lane_id = taking.conn, taking.lane_id
    batch = lock_batch(conn, batch_id)
    first = _FIRST_READY[taking.may_take_solo]
    slice_id = conn.execute(first, {"lane": lane_id, "batch": batch_id}).scalar_one_or_none()
    if batch is None or slice_id is None:
        taking.tally.recount(lane_id, batch_id)
        return
    row = conn.execute(sa.select(slices).where(slices.c.id == slice_id)).one()
    room = batch.budget_usd - batch.cost_usd - batch.reserved_usd
    fitting, cost = _affordable(conn, row, cost_of, room)
    if not fitting:
        if batch.reserved_usd <= 1e-9:
            pause = sa.update(batches).where(batches.c.id == batch_id, ~batches.c.paused)
            if conn.execute(pause.values(paused=True, pause_reason="budget")).rowcount:
                enqueue_event(conn, batch, "batch.paused")
        return
    if len(fitting) < row.line_count:
        rest = without(unpack_lines(row.lines), fitting)
        insert_piece(conn, row, Piece(rest), taking.tally)
        rewrite_lines(conn, row.id, fitting)
        taking.tally.add(lane_id, batch_id, ready=-len(rest))
    _lease(taking, _LEASE, reserve=cost, slice=slice_id)
    reserve = batches.c.reserved_usd + cost
    conn.execute(sa.update(batches).where(batches.c.id == batch_id).values(reserved_usd=reserve))


def _affordable(conn: sa.Connection, row: Any, cost_of: CostOf, room: float) -> tuple[list[int], float]:
    """The longest prefix of the slice's lines whose estimates fit into `room` dollars, and their sum."""
    lines = unpack_lines(row.lines)
    query = sa.select(requests.c.line, requests.c.est_input, requests.c.est_output)
    found = conn.execute(query.where(requests.c.batch_id == row.batch_id, among(requests.c.line, lines)))
    costs = {line: cost_of(Usage(est_input, 0, est_output, 0)) for line, est_input, est_output in found}
    total = 0.0
    for index, line in enumerate(lines):
        cost = costs.get(line, 0.0)
        if total + cost > room or room <= 0:
            return lines[:index], total
        total += cost
    return lines, total


_BATCHES_OF = (
    sa.select(
        batches.c.id.label("batch_id"), batches.c.public_id.label("batch_public_id"), batches.c.project_id,
        batches.c.endpoint, batches.c.options, sa.func.coalesce(files.c.blob, "").label("input_blob"),
        batches.c.expires_at, (sa.cast(batches.c.expires_at - db_now(), sa.Float) / 1000).label("left_s"),
    )
    .outerjoin(files, files.c.id == batches.c.input_file_id)
    .where(among(batches.c.id, "ids"))
)  # fmt: skip


def _as_claims(taking: _Taking) -> list[SliceClaim]:
    """The taken rows with what the executor must know of their batches."""
    if not taking.rows:
        return []
    found = taking.conn.execute(_BATCHES_OF, {"ids": {row.batch_id for row in taking.rows}})
    of_batch = {row.batch_id: row._asdict() for row in found}
    return [
        SliceClaim(
            slice_id=row.id, epoch=row.epoch, lane_id=row.lane_id, route=row.route, hop=row.hop,
            lines=unpack_lines(row.lines), priority=row.priority, solo=row.solo, prefix=row.prefix,
            reserved_usd=row.reserved_usd, suspicion=row.suspicion, **of_batch[row.batch_id],
        )
        for row in taking.rows
    ]  # fmt: skip
