"""Claims with 10 M lines waiting in 1,000 batches on PostgreSQL: latency of one claim, alone and with eight at once.

Owns: filling the tables (by INSERT … SELECT on the server) and those rows.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator

import sqlalchemy as sa

from batch.settings import SLICE_MAX_LINES
from batch.storage.claims import claim_slices
from batch.storage.engine import Database
from batch.storage.lanes import ensure_lane
from batch.storage.packing import pack_lines
from batch.storage.tables import slices
from benchmarks.inprocess import fresh_world
from benchmarks.inputs import MODEL
from benchmarks.measure import Row, Scale, percentile, program, progress

BATCHES = 1_000
LINES_PER_BATCH = 10_000
CLAIMS = 400
AT_ONCE = 8


def run(scale: Scale) -> Iterator[Row]:
    per_batch = scale.lines(LINES_PER_BATCH, SLICE_MAX_LINES)
    total = BATCHES * per_batch
    alone = Row(f"claim p99, {total / 1e6:.3g} M lines in {BATCHES:,} batches", "ms", [], most=10)
    together = Row(f"claim p99, {AT_ONCE} claimers at once", "ms", [], note="waits for the others' locks included")
    with fresh_world("postgresql") as (world, _project):
        progress(f"filling {total:,} lines")
        lane_id = fill(world.db, per_batch)
        for repeat in range(scale.repeats):
            times = _claims(world.db, lane_id, f"one-{repeat}", CLAIMS)
            alone.values.append(percentile(times, 0.99) * 1000)
            alone.note = f"p50 {percentile(times, 0.5) * 1000:.1f} ms"
            together.values.append(percentile(_at_once(world.db, lane_id, repeat), 0.99) * 1000)
    yield alone
    yield together


def fill(db: Database, per_batch: int) -> int:
    """Open batches with ready slices and one request row a line; the lane they wait in."""
    with db.write() as connection:
        lane_id = ensure_lane(connection, "bench", "env:BENCH", MODEL)
        connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
        connection.execute(sa.text(_BATCHES), {"count": BATCHES, "lines": per_batch})
        for batch_id in range(1, BATCHES + 1, 50):
            bounds = {"first": batch_id, "last": min(batch_id + 49, BATCHES), "lines": per_batch}
            connection.execute(sa.text(_REQUESTS), bounds)
        for batch_id in range(1, BATCHES + 1):
            connection.execute(sa.insert(slices), list(_slice_rows(lane_id, batch_id, per_batch)))
        connection.execute(sa.text(_LANES), {"lane": lane_id, "lines": per_batch})
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("SET statement_timeout = 0"))
        connection.execute(sa.text("VACUUM ANALYZE"))
    return lane_id


def _slice_rows(lane_id: int, batch_id: int, per_batch: int) -> Iterator[dict[str, object]]:
    for position, first in enumerate(range(1, per_batch + 1, SLICE_MAX_LINES)):
        chosen = list(range(first, min(first + SLICE_MAX_LINES, per_batch + 1)))
        yield {
            "batch_id": batch_id, "lane_id": lane_id, "route": [lane_id], "priority": 1, "position": position,
            "lines": pack_lines(chosen), "line_count": len(chosen), "est_tokens": 100 * len(chosen), "state": "ready",
        }  # fmt: skip


def _claims(db: Database, lane_id: int, owner: str, count: int) -> list[float]:
    """Seconds of each claim of one slice."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        claim_slices(db, lane_id, owner, want_lines=1, max_slices=1)
        times.append(time.perf_counter() - began)
    return times


def _at_once(db: Database, lane_id: int, repeat: int) -> list[float]:
    times: list[float] = []
    threads = [
        threading.Thread(target=lambda n=n: times.extend(_claims(db, lane_id, f"many-{repeat}-{n}", CLAIMS // AT_ONCE)))
        for n in range(AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


_BATCHES = """
INSERT INTO batches (id, public_id, project_id, endpoint, completion_window, status, input_file, metadata, options,
                     warnings, report, priority, created_at, in_progress_at, expires_at, total)
SELECT b, 'batch_' || b, 1 + b % 10, '/v1/chat/completions', '24h', 'in_progress', 'file-' || b, '{}', '{}', '[]', '{}',
       1, 1, 1, 32503680000000, CAST(:lines AS bigint)
FROM generate_series(1, CAST(:count AS int)) AS b
"""
_REQUESTS = """
INSERT INTO requests (batch_id, line, custom_id, body, est_input, est_output, route)
SELECT b, l, 'r' || l, '{"model": "bench-model", "messages": [{"role": "user", "content": "hello"}]}', 10, 40, 0
FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS b, generate_series(1, CAST(:lines AS int)) AS l
"""
_LANES = """
INSERT INTO batch_lanes (lane_id, batch_id, project_id, priority, deadline, ready_lines)
SELECT CAST(:lane AS bigint), id, project_id, priority, expires_at, CAST(:lines AS bigint) FROM batches
"""

if __name__ == "__main__":
    sys.exit(program(run))
