"""Rows for tests that start in the middle of the journey: an open batch, its requests, its slices."""

from __future__ import annotations

import orjson
import sqlalchemy as sa

from batch.clock import SYSTEM_CLOCK
from batch.domain.ids import new_id
from batch.domain.outcome import Usage
from batch.domain.result import LineResult
from batch.providers.prices import Price
from batch.storage.claims import SliceClaim
from batch.storage.engine import Database, db_now
from batch.storage.lanes import ensure_lane
from batch.storage.packing import pack_lines
from batch.storage.tables import batch_lanes, batches, requests, slices

A_DOLLAR_A_LINE = Price(input=0, output=50_000).of  # make_batch's lines have 20 estimated tokens each


def make_lane(db: Database, provider: str = "sim", model: str = "m") -> int:
    with db.write() as conn:
        return ensure_lane(conn, provider, f"env:{provider}", model)


def make_batch(
    db: Database, lane_ids: list[int], lines: int, *, per_slice: int = 10, priority: int = 1, project_id: int = 1,
    status: str = "in_progress", **values: object,
) -> int:  # fmt: skip
    """An open batch with `lines` requests in ready slices of `per_slice` lines, in the route's first lane."""
    with db.write() as conn:
        batch_id = conn.execute(
            sa.insert(batches).values(
                public_id=new_id("batch_", SYSTEM_CLOCK), project_id=project_id, endpoint="/v1/chat/completions",
                completion_window="24h", status=status, input_file="file-x", metadata={}, options={}, warnings=[],
                report={}, priority=priority, created_at=db_now(), total=lines, **values,
            ).returning(batches.c.id)
        ).scalar_one()  # fmt: skip
        body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hello é"}]}).decode()
        conn.execute(
            sa.insert(requests),
            [
                {"batch_id": batch_id, "line": n, "custom_id": f"c{n}", "body": body, "est_input": 10, "est_output": 20}
                for n in range(1, lines + 1)
            ],
        )
        for start in range(1, lines + 1, per_slice):
            chosen = list(range(start, min(start + per_slice, lines + 1)))
            conn.execute(
                sa.insert(slices).values(
                    batch_id=batch_id, lane_id=lane_ids[0], route=lane_ids, priority=priority, position=start,
                    lines=pack_lines(chosen), line_count=len(chosen), est_tokens=30 * len(chosen), state="ready",
                )
            )  # fmt: skip
        conn.execute(
            sa.insert(batch_lanes).values(
                lane_id=lane_ids[0], batch_id=batch_id, project_id=project_id, priority=priority, ready_lines=lines
            )
        )
    return int(batch_id)


def result_of(claim: SliceClaim, line: int, *, ok: bool = True, **values: object) -> LineResult:
    return LineResult(
        claim.batch_id, line, f"c{line}", ok, b'{"custom_id":"c%d"}' % line, None if ok else "boom",
        usage=Usage(10, 0, 5, 0), billed=Usage(10, 0, 5, 0), slice_id=claim.slice_id, epoch=claim.epoch, **values,
    )  # fmt: skip


def batch_row(db: Database, batch_id: int) -> sa.Row:
    with db.read() as conn:
        return conn.execute(sa.select(batches).where(batches.c.id == batch_id)).one()


def lapse_leases(db: Database) -> None:
    """As if every lease had run out."""
    with db.write() as conn:
        conn.execute(sa.update(slices).where(slices.c.state == "leased").values(lease_until=db_now() - 1000))
