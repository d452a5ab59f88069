"""Rows of `batches` and their life: inserted, cancelled, paused, sealed, published.

Owns: the view of a batch, paging, and one guarded statement for each transition that is not a
recording (storage.results), an ingest's end (storage.ingest) or a job lease (storage.jobs).
May not touch: lines. Lock order: the batch row, then its slices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from batch.storage.engine import db_in, db_now, insert_for
from batch.storage.slices import UNHELD
from batch.storage.tables import batch_errors, batch_lanes, batches, files, slices

PRIORITY_CLASSES = ("high", "normal", "low")  # batches.priority is the index


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch as stored. Times are milliseconds since the epoch; `*_file` and `parent` are public ids."""

    id: int
    public_id: str
    project_id: int
    endpoint: str
    completion_window: str
    status: str
    paused: bool
    pause_reason: str | None
    input_file: str
    input_file_id: int | None
    output_file_id: int | None
    error_file_id: int | None
    parent_id: int | None
    model: str | None
    metadata: dict[str, str]
    options: dict[str, Any]
    warnings: list[Any]
    report: dict[str, Any]
    priority: int
    output_expires_after_s: int | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    sealed_at: int | None
    purged_at: int | None
    total: int
    completed: int
    failed: int
    last_seq: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    billed_input_tokens: int
    billed_output_tokens: int
    cost_usd: float
    unpriced: int
    budget_usd: float | None
    max_failure_share: float | None
    est_input_tokens: int
    est_output_tokens: int
    ingest_offset: int
    ingest_line: int
    ingest_errors: int
    routes: list[list[int]] | None
    request_hash: str | None
    output_file: str | None = None
    error_file: str | None = None
    parent: str | None = None

    @property
    def known_cost_usd(self) -> float | None:
        """What its lines cost as far as that is known; None when nothing is."""
        return None if self.unpriced and not self.cost_usd else self.cost_usd


class BatchError(NamedTuple):
    """One entry of `errors.data`; `line` is 1-based, None for the file as a whole."""

    code: str
    message: str
    param: str | None
    line: int | None


_PARENT = batches.alias("parent")
_JOINED = {
    "output_file": sa.select(files.c.public_id).where(files.c.id == batches.c.output_file_id).scalar_subquery(),
    "error_file": sa.select(files.c.public_id).where(files.c.id == batches.c.error_file_id).scalar_subquery(),
    "parent": sa.select(_PARENT.c.public_id).where(_PARENT.c.id == batches.c.parent_id).scalar_subquery(),
}
_COLUMNS = [_JOINED[name].label(name) if name in _JOINED else batches.c[name] for name in BatchRow.__slots__]
_BY_PUBLIC_ID = sa.select(*_COLUMNS).where(  # built once: status polls are the API's most frequent request
    batches.c.public_id == sa.bindparam("public"), batches.c.project_id == sa.bindparam("project")
)


def insert_batch(conn: sa.Connection, *, window_s: float | None, **values: Any) -> BatchRow | None:
    """A new batch, `validating` from now on; `window_s` None gives it no deadline.

    None when its public id or idempotency key is taken: that row can be found now.
    """
    insert = insert_for(conn, batches)
    row = {"warnings": [], "report": {}, "status": "validating", **values}
    expires_at = db_in(window_s) if window_s is not None else None
    insert = insert.values(created_at=db_now(), expires_at=expires_at, **row).on_conflict_do_nothing()
    batch_id = conn.execute(insert.returning(batches.c.id)).scalar_one_or_none()
    return None if batch_id is None else load_batch(conn, batch_id)


def load_batch(conn: sa.Connection, batch_id: int) -> BatchRow:
    """By internal id, which must exist."""
    return BatchRow(*conn.execute(sa.select(*_COLUMNS).where(batches.c.id == batch_id)).one())


def find_anyones_batch(conn: sa.Connection, public_id: str) -> BatchRow | None:
    """Whoever's it is: for operators."""
    return _one(conn, batches.c.public_id == public_id)


def find_batch(conn: sa.Connection, project_id: int, public_id: str) -> BatchRow | None:
    row = conn.execute(_BY_PUBLIC_ID, {"public": public_id, "project": project_id}).one_or_none()
    return BatchRow(*row) if row else None


def find_by_idempotency_key(conn: sa.Connection, project_id: int, key: str) -> BatchRow | None:
    return _one(conn, batches.c.project_id == project_id, batches.c.idempotency_key == key)


def lock_requests_like(conn: sa.Connection, request_hash: str) -> None:
    """Until the end of the transaction no other one makes a batch of this request; SQLite has one writer anyway."""
    if conn.dialect.name == "postgresql":
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(request_hash, 0))))


def find_recent_twin(
    conn: sa.Connection, project_id: int, api_key_id: int | None, request_hash: str, within_s: float
) -> BatchRow | None:
    """The newest batch that the same key made from the same request in the last `within_s` seconds."""
    same_key = batches.c.api_key_id.is_(None) if api_key_id is None else batches.c.api_key_id == api_key_id
    same_request = (same_key, batches.c.request_hash == request_hash, batches.c.created_at > db_in(-within_s))
    return next(iter(_newest(conn, project_id, 1, *same_request)), None)


def find_child(conn: sa.Connection, batch_id: int) -> BatchRow | None:
    """The batch that retries this one; a family is a chain, so there is at most one."""
    return _one(conn, batches.c.parent_id == batch_id)


def page_batches(conn: sa.Connection, project_id: int, *, limit: int, after: int | None) -> list[BatchRow]:
    """Newest first, at most `limit`, older than the batch with internal id `after`."""
    return _newest(conn, project_id, limit, *([] if after is None else [batches.c.id < after]))


def errors_of(conn: sa.Connection, batch_ids: Sequence[int]) -> dict[int, list[BatchError]]:
    """The entries of each batch that has any, in line order, those of the file as a whole last."""
    found: dict[int, list[BatchError]] = {}
    columns = (batch_errors.c[name] for name in ("batch_id", *BatchError._fields))
    rows = conn.execute(
        sa.select(*columns)
        .where(batch_errors.c.batch_id.in_(batch_ids))
        .order_by(batch_errors.c.batch_id, batch_errors.c.line.is_(None), batch_errors.c.line, batch_errors.c.position)
    )
    for batch_id, *entry in rows:
        found.setdefault(batch_id, []).append(BatchError(*entry))
    return found


def insert_errors(conn: sa.Connection, batch_id: int, first: int, errors: Iterable[BatchError]) -> None:
    """Entries from position `first` on."""
    rows = [
        {"batch_id": batch_id, "position": position, **error._asdict()} for position, error in enumerate(errors, first)
    ]
    if rows:
        conn.execute(sa.insert(batch_errors), rows)


def open_demand(conn: sa.Connection, project_id: int, except_batch: int) -> tuple[int, int]:
    """(requests, estimated tokens) that the project's other running batches still have to do."""
    left = batches.c.total - batches.c.completed - batches.c.failed
    tokens = batches.c.est_input_tokens + batches.c.est_output_tokens
    row = conn.execute(
        sa.select(
            sa.func.coalesce(sa.func.sum(left), 0),
            sa.func.coalesce(sa.func.sum(tokens * left / sa.func.nullif(batches.c.total, 0)), 0),
        ).where(
            batches.c.project_id == project_id,
            batches.c.id != except_batch,
            batches.c.status == "in_progress",
            batches.c.sealed_at.is_(None),
        )
    ).one()
    return int(row[0]), int(row[1])


def cancel_if_open(conn: sa.Connection, batch_id: int) -> str | None:
    """Start cancelling; returns the state it came from, None when the batch was sealed or cancelling already.

    A validating batch is sealed at once: it has no slice, so nothing can be recorded any more.
    """
    for source, sealed in (("validating", db_now()), ("in_progress", sa.null())):
        done = conn.execute(
            sa.update(batches)
            .where(batches.c.id == batch_id, batches.c.status == source, batches.c.sealed_at.is_(None))
            .values(status="cancelling", cancelling_at=db_now(), sealed_at=sealed, job_until=None)
        )
        if done.rowcount:
            return source
    return None


def seal_if_quiet(conn: sa.Connection, batch_id: int, grace_s: float) -> bool:
    """Seal a cancelling or overdue batch when nobody holds a slice of it, or the grace time is over.

    Its slices end in the same transaction; a result that arrives later meets the seal and is dropped.
    """
    held = sa.exists(
        sa.select(slices.c.id).where(
            slices.c.batch_id == batch_id, slices.c.state == "leased", slices.c.lease_until > db_now()
        )
    )
    for status, since, ended in (
        ("cancelling", batches.c.cancelling_at, "cancelled"),
        ("in_progress", batches.c.expires_at, "expired"),
    ):
        done = conn.execute(
            sa.update(batches)
            .where(
                batches.c.id == batch_id,
                batches.c.status == status,
                batches.c.sealed_at.is_(None),
                sa.or_(batches.c.status == "cancelling", since <= db_now()),
                sa.or_(~held, since + int(grace_s * 1000) <= db_now()),
            )
            .values(sealed_at=db_now(), reserved_usd=0.0, paused=False, pause_reason=None)
        )
        if done.rowcount:
            _end_slices(conn, batch_id, ended)
            return True
    return False


def _end_slices(conn: sa.Connection, batch_id: int, state: str) -> None:
    conn.execute(
        sa.update(slices)
        .where(slices.c.batch_id == batch_id, slices.c.state.in_(("ready", "leased")))
        .values(state=state, **UNHELD)
    )
    conn.execute(sa.delete(batch_lanes).where(batch_lanes.c.batch_id == batch_id))


def pause_if_open(conn: sa.Connection, batch_id: int, reason: str) -> bool:
    """False when the batch is sealed, cancelling or paused already (then the first reason stays)."""
    done = conn.execute(
        sa.update(batches)
        .where(
            batches.c.id == batch_id,
            batches.c.status.in_(("validating", "in_progress")),
            batches.c.sealed_at.is_(None),
            batches.c.paused.is_(False),
        )
        .values(paused=True, pause_reason=reason)
    )
    return done.rowcount == 1


def resume_if_open(
    conn: sa.Connection, batch_id: int, *, budget_usd: float | None, max_failure_share: float | None
) -> bool:
    """Lift the pause, if any, and set the limits given. A budget that is spent changes nothing: False.

    A crossed failure share does not: whoever resumes has seen the failures (storage.results pauses no second time).
    """
    budget = batches.c.budget_usd if budget_usd is None else sa.literal(budget_usd)
    share = batches.c.max_failure_share if max_failure_share is None else sa.literal(max_failure_share)
    done = conn.execute(
        sa.update(batches)
        .where(
            batches.c.id == batch_id,
            batches.c.status.in_(("validating", "in_progress")),
            batches.c.sealed_at.is_(None),
            sa.or_(budget.is_(None), batches.c.cost_usd < budget),
        )
        .values(paused=False, pause_reason=None, budget_usd=budget, max_failure_share=share)
    )
    return done.rowcount == 1


def lanes_of(conn: sa.Connection, batch_id: int) -> list[int]:
    return list(conn.execute(sa.select(batch_lanes.c.lane_id).where(batch_lanes.c.batch_id == batch_id)).scalars())


def _newest(
    conn: sa.Connection, project_id: int, limit: int, *conditions: sa.ColumnElement[bool]
) -> list[BatchRow]:
    query = sa.select(*_COLUMNS).where(batches.c.project_id == project_id, *conditions)
    return [BatchRow(*row) for row in conn.execute(query.order_by(batches.c.id.desc()).limit(limit))]


def _one(conn: sa.Connection, *conditions: sa.ColumnElement[bool]) -> BatchRow | None:
    row = conn.execute(sa.select(*_COLUMNS).where(*conditions)).one_or_none()
    return BatchRow(*row) if row else None
