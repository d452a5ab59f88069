"""Rows that ingest writes: request lines in bulk, errors, and the one transaction that starts a batch.

Owns: chunk inserts (executemany on SQLite, COPY on PostgreSQL), what a resumed ingest reads back, slices,
batch_lanes and the transitions `reject` and `start`. Every chunk is fenced by the job's epoch.
May not touch: the meaning of a line. Lock order: the batch row, then the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from batch.storage.batches import BatchError, insert_errors
from batch.storage.engine import copy_rows, db_now
from batch.storage.jobs import renew_job_if_held
from batch.storage.packing import pack_lines
from batch.storage.slices import Tally
from batch.storage.tables import batches, requests, results, slices

ERRORS_KEPT = 1000


class RequestRow(NamedTuple):
    """One accepted line, in the order of the table's columns. `body` is UTF-8 JSON text."""

    batch_id: int
    line: int
    custom_id: str
    body: str | None
    blob_offset: int | None
    blob_length: int | None
    est_input: int
    est_output: int
    route: int
    copy_of: int | None
    prefix: int | None = None


class RefusedRow(NamedTuple):
    """One line that goes to the error file without being sent: `output` is its whole output line."""

    line: int
    custom_id: str
    code: str
    output: str


class Cut(NamedTuple):
    """One slice to be: its lines in sending order, ordered lane ids, estimated tokens."""

    lines: Sequence[int]
    route: Sequence[int]
    est_tokens: int
    prefix: str | None


@dataclass(slots=True)
class Chunk:
    """What is gathered and committed together, from so many `lines` and bytes of the file."""

    rows: list[RequestRow] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    errors: list[BatchError] = field(default_factory=list)
    lines: int = 0
    size: int = 0


@dataclass(slots=True)
class Weight:
    """Counts of one file; tokens are estimates of the accepted lines."""

    accepted: int = 0
    refused: int = 0
    est_input: int = 0
    est_output: int = 0

    @property
    def lines(self) -> int:
        return self.accepted + self.refused


_COLUMNS = ", ".join(RequestRow._fields)
_INSERT_SQLITE = f"INSERT INTO requests ({_COLUMNS}) VALUES ({', '.join('?' * len(RequestRow._fields))})"  # noqa: S608
_COPY_TYPES = ["int8", "int8", "text", "text", "int8", "int8", "int4", "int4", "int2", "int8", "int8"]


def store_chunk_if_held(
    conn: sa.Connection, batch_id: int, epoch: int, chunk: Chunk, *, errors_before: int, **progress: Any
) -> bool:
    """One chunk and the `progress` behind it (ingest_line, ingest_offset, routes, model) in one transaction.

    False when the job is lost or the batch cancelled.
    """
    errors_now = errors_before + len(chunk.errors)
    if not renew_job_if_held(conn, batch_id, epoch, ingest_errors=errors_now, **progress):
        return False
    if chunk.rows:
        _insert_requests(conn, chunk.rows)
    if chunk.refused:
        _insert_refused(conn, batch_id, chunk.refused)
    insert_errors(conn, batch_id, errors_before, _kept(errors_before, chunk.errors))
    return True


def stored_lines(conn: sa.Connection, batch_id: int, *, with_body: bool = False) -> Iterator[RequestRow]:
    """Every line that is stored already, ascending, in pages: no long read on either database."""
    columns: dict[str, sa.ColumnElement[Any]] = {name: requests.c[name] for name in RequestRow._fields}
    if not with_body:
        columns["body"] = sa.null().label("body")
    last = 0
    while True:
        page = conn.execute(
            sa.select(*columns.values())
            .where(requests.c.batch_id == batch_id, requests.c.line > last)
            .order_by(requests.c.line)
            .limit(200 if with_body else 5000)
        ).fetchall()
        if not page:
            return
        yield from map(RequestRow._make, page)
        last = page[-1].line


def lines_by_prefix(conn: sa.Connection, batch_id: int, route: int) -> Iterator[tuple[int, int, int, int]]:
    """(line, prefix, estimated tokens in, out) of a route's lines that are sent; like beginnings stand together,
    long answers first. The database sorts, on its own disk where it must."""
    columns = (requests.c.line, requests.c.prefix, requests.c.est_input, requests.c.est_output)
    found = conn.execution_options(yield_per=5000).execute(
        sa.select(*columns)
        .where(requests.c.batch_id == batch_id, requests.c.route == route, requests.c.copy_of.is_(None))
        .order_by(requests.c.prefix, requests.c.est_output.desc(), requests.c.line)
    )
    for row in found:
        yield row[0], row[1] or 0, row[2], row[3]


def refused_ids(conn: sa.Connection, batch_id: int) -> list[tuple[int, str]]:
    """(line, custom_id) of lines that were refused at ingest, ascending."""
    rows = conn.execute(
        sa.select(results.c.line, results.c.custom_id).where(results.c.batch_id == batch_id).order_by(results.c.line)
    )
    return [(row.line, row.custom_id) for row in rows]


def start_if_held(
    conn: sa.Connection,
    batch_id: int,
    epoch: int,
    weight: Weight,
    cuts: Sequence[Cut],
    *,
    model: str | None,
    warnings: list[Any],
) -> str | None:
    """Slices, lanes, totals and `in_progress` at once; the new status, None when the job was lost.

    A batch whose every line was refused has nothing to run: it is sealed and goes on to `finalizing`.
    """
    done = conn.execute(
        sa.update(batches)
        .where(batches.c.id == batch_id, batches.c.status == "validating", batches.c.job_epoch == epoch)
        .values(
            status="in_progress" if weight.accepted else "finalizing",
            in_progress_at=db_now(),
            finalizing_at=None if weight.accepted else db_now(),
            sealed_at=None if weight.accepted else db_now(),
            total=weight.lines,
            failed=weight.refused,
            last_seq=weight.refused,
            est_input_tokens=weight.est_input,
            est_output_tokens=weight.est_output,
            model=model,
            warnings=warnings,
            job_owner=None,
            job_until=None,
        )
        .returning(batches.c.status, batches.c.priority)
    ).one_or_none()
    if done is None:
        return None
    _insert_slices(conn, batch_id, done.priority, cuts)
    tally = Tally()
    for cut in cuts:
        tally.add(cut.route[0], batch_id, ready=len(cut.lines))
    tally.apply(conn)
    return str(done.status)


def reject_if_held(
    conn: sa.Connection, batch_id: int, epoch: int, errors: Sequence[BatchError], *, errors_before: int
) -> bool:
    """`failed`, with these entries beside those stored before; one summary stands for all beyond 1,000."""
    done = conn.execute(
        sa.update(batches)
        .where(batches.c.id == batch_id, batches.c.status == "validating", batches.c.job_epoch == epoch)
        .values(
            status="failed",
            failed_at=db_now(),
            ingest_errors=errors_before + len(errors),
            job_owner=None,
            job_until=None,
        )
    )
    if not done.rowcount:
        return False
    insert_errors(conn, batch_id, errors_before, _kept(errors_before, errors))
    beyond = errors_before + len(errors) - ERRORS_KEPT
    if beyond > 0:
        message = f"{beyond:,} more lines are invalid; only the first 1,000 are listed."
        insert_errors(conn, batch_id, ERRORS_KEPT, [BatchError("too_many_errors", message, None, None)])
    return True


def _kept(before: int, errors: Sequence[BatchError]) -> Sequence[BatchError]:
    return errors[: max(0, ERRORS_KEPT - before)]


def _insert_requests(conn: sa.Connection, rows: list[RequestRow]) -> None:
    if conn.dialect.name == "sqlite":
        conn.exec_driver_sql(_INSERT_SQLITE, list(rows))
    else:
        copy_rows(conn, f"requests ({_COLUMNS})", _COPY_TYPES, rows)


def _insert_refused(conn: sa.Connection, batch_id: int, refused: Sequence[RefusedRow]) -> None:
    """Numbered after those of earlier chunks; the batch's own counters follow when it starts."""
    last = conn.execute(
        sa.select(sa.func.coalesce(sa.func.max(results.c.seq), 0)).where(results.c.batch_id == batch_id)
    ).scalar_one()
    rows = [
        {"batch_id": batch_id, "seq": last + index, "ok": False, **row._asdict()}
        for index, row in enumerate(refused, 1)
    ]
    conn.execute(sa.insert(results), rows)


def _insert_slices(conn: sa.Connection, batch_id: int, priority: int, cuts: Sequence[Cut]) -> None:
    rows = [
        {
            "batch_id": batch_id,
            "lane_id": cut.route[0],
            "route": list(cut.route),
            "priority": priority,
            "position": position,
            "lines": pack_lines(cut.lines),
            "line_count": len(cut.lines),
            "est_tokens": cut.est_tokens,
            "prefix": cut.prefix,
            "state": "ready",
        }
        for position, cut in enumerate(cuts)
    ]
    if rows:
        conn.execute(sa.insert(slices), rows)
