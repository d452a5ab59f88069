"""Recording results: under the batch row's lock, each line once, counted by what was really inserted.

Owns: the rows of `results`, and the one transaction that advances a batch's counts, usage, cost and
report, pauses it at its budget or failure share, and seals it when its last line lands.
Lock order: batch rows ascending → slices ascending → results; at most 8 batches a transaction.
May not touch: files, cancel and expiry (batches.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import sqlalchemy as sa

from batch.domain.outcome import Usage
from batch.domain.result import LineResult
from batch.storage.claims import SliceClaim
from batch.storage.engine import Database, copy_rows, db_now
from batch.storage.leases import close_if_held, lines_with_result
from batch.storage.packing import among
from batch.storage.tables import batches, line_progress, results, slices
from batch.storage.webhooks import enqueue_event

BATCHES_PER_TRANSACTION = 8
FAILURE_SHARE_FROM = 20  # finished lines before max_failure_share is judged
REPORT_KEYS = 500


@dataclass(slots=True)
class GroupReport:
    """What came of a group: rows inserted, rows `dropped` because they came for a sealed batch, as a duplicate or from
    an owner that did not hold the slice ("unheld"), and the batches that it sealed or paused."""

    recorded: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    sealed_batches: list[int] = field(default_factory=list)
    paused_batches: list[int] = field(default_factory=list)


# Built once: these run for every group, and building a statement costs more than running it.
_ADVANCED = (
    "completed", "failed", "last_seq", *Usage._fields, "billed_input_tokens", "billed_output_tokens",
    "cost_usd", "unpriced", "reserved_usd", "report",
)  # fmt: skip
_READ = (
    "id", "public_id", "project_id", "status", "paused", "sealed_at", "total", "budget_usd", "max_failure_share",
)  # fmt: skip
_LOCK_BATCHES = (
    sa.select(*(batches.c[name] for name in (*_READ, *_ADVANCED)))
    .where(among(batches.c.id, "ids"))
    .order_by(batches.c.id)
    .with_for_update(key_share=True)
)
_LOCK_SLICES = (
    sa.select(slices.c.id, slices.c.epoch, slices.c.suspicion, slices.c.reserved_usd)
    .where(among(slices.c.id, "ids"), slices.c.owner == sa.bindparam("holder"), slices.c.state == "leased")
    .order_by(slices.c.id)
    .with_for_update(key_share=True)
)
_FORGET = sa.delete(line_progress).where(
    line_progress.c.batch_id == sa.bindparam("batch"), among(line_progress.c.line, "lines")
)
_ADVANCE = (
    sa.update(batches)
    .where(batches.c.id == sa.bindparam("batch"))
    .values({name: sa.bindparam(f"new_{name}", type_=batches.c[name].type) for name in _ADVANCED})
)


def record_group(
    db: Database, rows: Sequence[LineResult], owner: str, closing: Sequence[SliceClaim] = ()
) -> GroupReport:
    """Store results durably, and close those slices of `closing` that have no open line afterwards.

    The first result of a line wins. A success counts until its batch is sealed; a failure only while `owner`
    holds its slice (slice_id 0: the caller holds the batch's job lease). Safe to repeat after a fault.
    """
    report = GroupReport()
    ids = sorted({row.batch_id for row in rows} | {claim.batch_id for claim in closing})
    for start in range(0, len(ids), BATCHES_PER_TRANSACTION):
        chosen = set(ids[start : start + BATCHES_PER_TRANSACTION])
        mine = rows if len(chosen) == len(ids) else [row for row in rows if row.batch_id in chosen]
        with db.write() as conn:
            _record(conn, mine, owner, chosen, report)
            held = {claim.slice_id: claim.epoch for claim in closing if claim.batch_id in chosen}
            if held:
                close_if_held(conn, owner, held)
    return report


def results_after(conn: sa.Connection, batch_id: int, seq: int, limit: int) -> Sequence[Any]:
    """Rows (seq, line, custom_id, ok, code, output) in the order of recording, those after `seq`; no gaps."""
    return conn.execute(
        sa.select(
            results.c.seq, results.c.line, results.c.custom_id, results.c.ok, results.c.code, results.c.output
        )
        .where(results.c.batch_id == batch_id, results.c.seq > seq)
        .order_by(results.c.seq)
        .limit(limit)
    ).fetchall()


def _record(
    conn: sa.Connection, rows: Sequence[LineResult], owner: str, ids: set[int], report: GroupReport
) -> None:
    """The pipeline of one transaction; every later step sees only what the earlier ones let through."""
    locked = {row.id: row for row in conn.execute(_LOCK_BATCHES, {"ids": ids})}
    mine = conn.execute(_LOCK_SLICES, {"ids": {row.slice_id for row in rows}, "holder": owner})
    held = {(row.id, row.epoch): row for row in mine}
    by_batch: dict[int, list[LineResult]] = {}
    for row in rows:
        by_batch.setdefault(row.batch_id, []).append(row)
    for batch_id in sorted(by_batch):
        batch = locked.get(batch_id)
        if batch is None or batch.sealed_at is not None:
            report.dropped["sealed"] += len(by_batch[batch_id])
            continue
        fresh = _drop_unheld(by_batch[batch_id], held, report)
        fresh = _drop_duplicates(conn, batch_id, fresh, report)
        if fresh:
            _insert(conn, batch.last_seq, fresh)
            conn.execute(_FORGET, {"batch": batch_id, "lines": [row.line for row in fresh]})
            released = _settle_slices(conn, fresh, held)
            _advance(conn, batch, fresh, released, report)
            report.recorded += len(fresh)


def _drop_unheld(
    rows: list[LineResult], held: dict[tuple[int, int], Any], report: GroupReport
) -> list[LineResult]:
    kept = [row for row in rows if row.ok or not row.slice_id or (row.slice_id, row.epoch) in held]
    report.dropped["unheld"] += len(rows) - len(kept)
    return kept


def _drop_duplicates(
    conn: sa.Connection, batch_id: int, rows: list[LineResult], report: GroupReport
) -> list[LineResult]:
    """Lines that have a result, or stand twice in the group, are dropped before anything is numbered."""
    seen = lines_with_result(conn, batch_id, [row.line for row in rows])
    fresh = []
    for row in rows:
        if row.line not in seen:
            seen.add(row.line)
            fresh.append(row)
    report.dropped["duplicate"] += len(rows) - len(fresh)
    return fresh


_COLUMNS = "batch_id, line, seq, custom_id, ok, code, output"
# By rows a statement: SQLite's driver lets go of the interpreter's lock for each, and must win it back from the loop.
_INSERT_SQLITE = {
    rows: f"INSERT INTO results ({_COLUMNS}) VALUES {', '.join(['(?, ?, ?, ?, ?, ?, ?)'] * rows)}"  # noqa: S608
    for rows in (100, 10, 1)
}
_COPY_TYPES = ["int8", "int8", "int8", "text", "bool", "text", "text"]


def _insert(conn: sa.Connection, last_seq: int, rows: list[LineResult]) -> None:
    values = [
        (row.batch_id, row.line, seq, row.custom_id, row.ok, row.code, row.output.decode())
        for seq, row in enumerate(rows, last_seq + 1)
    ]
    if conn.dialect.name == "sqlite":
        while values:
            count = next(rows for rows in _INSERT_SQLITE if rows <= len(values))
            conn.exec_driver_sql(_INSERT_SQLITE[count], tuple(chain.from_iterable(values[:count])))
            values = values[count:]
    else:
        copy_rows(conn, f"results ({_COLUMNS})", _COPY_TYPES, values)


def _settle_slices(conn: sa.Connection, rows: list[LineResult], held: dict[tuple[int, int], Any]) -> float:
    """A result clears suspicion and frees its part of the slice's reserve. Returns the dollars freed."""
    freed: dict[tuple[int, int], float] = {}
    for row in rows:
        key = (row.slice_id, row.epoch)
        if key in held and (held[key].suspicion or row.reserved_usd):
            freed[key] = freed.get(key, 0.0) + row.reserved_usd
    total = 0.0
    for key in sorted(freed):
        amount = min(freed[key], held[key].reserved_usd)
        total += amount
        left = slices.c.reserved_usd - amount
        conn.execute(sa.update(slices).where(slices.c.id == key[0]).values(suspicion=0, reserved_usd=left))
    return total


def _advance(
    conn: sa.Connection, batch: Any, rows: list[LineResult], released: float, report: GroupReport
) -> None:
    """Counts, usage, cost, report; then pause or seal. All from the locked row, by what was inserted."""
    succeeded = sum(row.ok for row in rows)
    completed, failed = batch.completed + succeeded, batch.failed + len(rows) - succeeded
    usage, billed = _sum(row.usage for row in rows), _sum(row.billed for row in rows)
    cost = batch.cost_usd + sum(row.cost_usd or 0.0 for row in rows)
    values: dict[str, Any] = {
        "completed": completed,
        "failed": failed,
        "last_seq": batch.last_seq + len(rows),
        **{name: getattr(batch, name) + getattr(usage, name) for name in Usage._fields},
        "billed_input_tokens": batch.billed_input_tokens + billed.input_tokens,
        "billed_output_tokens": batch.billed_output_tokens + billed.output_tokens,
        "cost_usd": cost,
        "unpriced": batch.unpriced + sum(row.cost_usd is None for row in rows),
        "reserved_usd": max(0.0, batch.reserved_usd - released),
        "report": _count_facts(batch.report, rows),
    }
    conn.execute(_ADVANCE, {"batch": batch.id, **{f"new_{name}": value for name, value in values.items()}})
    if completed + failed == batch.total and batch.status in {"in_progress", "cancelling"}:
        conn.execute(sa.update(batches).where(batches.c.id == batch.id).values(**_sealing(batch)))
        report.sealed_batches.append(batch.id)
    elif reason := _reason_to_pause(batch, completed, failed, cost):
        paused = {"paused": True, "pause_reason": reason}
        conn.execute(sa.update(batches).where(batches.c.id == batch.id).values(**paused))
        report.paused_batches.append(batch.id)
        enqueue_event(conn, batch, "batch.paused")


def _sum(usages: Iterable[Usage]) -> Usage:
    return Usage(*map(sum, zip(*usages, strict=True)))


def _sealing(batch: Any) -> dict[str, Any]:
    """A cancelling batch is sealed too, but never turns finalizing."""
    sealed: dict[str, Any] = {"sealed_at": db_now(), "paused": False, "pause_reason": None}
    if batch.status == "in_progress":
        sealed |= {"status": "finalizing", "finalizing_at": db_now()}
    return sealed


def _reason_to_pause(batch: Any, completed: int, failed: int, cost: float) -> str | None:
    """A limit that this group crosses; one that was crossed before, and resumed from, does not pause again."""
    if batch.paused:
        return None
    if batch.budget_usd is not None and cost >= batch.budget_usd:
        return "budget"
    share = batch.max_failure_share
    if share is not None and (
        _crossed(share, failed, completed + failed, batch.total)
        and not _crossed(share, batch.failed, batch.completed + batch.failed, batch.total)
    ):
        return "failures"
    return None


def _crossed(share: float, failed: int, finished: int, total: int) -> bool:
    """Judged by the lines that have finished, once there are enough of them to judge."""
    return finished >= min(FAILURE_SHARE_FROM, total) and failed > share * finished


def _count_facts(report: dict[str, int], rows: list[LineResult]) -> dict[str, int]:
    """The batch's report with this group's facts counted in. Bounded in keys."""
    counts = Counter(fact for row in rows for fact in row.facts)
    merged = dict(report)
    for fact, count in counts.items():
        key = fact if fact in merged or len(merged) < REPORT_KEYS else fact.partition(":")[0] + ":other"
        merged[key] = merged.get(key, 0) + count
    return merged
