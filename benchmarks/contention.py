"""Many small worker processes on one batch of one PostgreSQL: what the batch row and the slices carry.

Owns: rows recorded a second, by number of processes and size of group. Each process claims slices of the
one batch and records their lines, as a worker does, without making calls.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import sqlalchemy as sa

from batch.domain.outcome import Usage
from batch.domain.result import LineResult
from batch.settings import SLICE_MAX_LINES
from batch.storage.claims import claim_slices
from batch.storage.engine import Database
from batch.storage.lanes import ensure_lane
from batch.storage.packing import pack_lines
from batch.storage.results import record_group
from batch.storage.tables import slices
from benchmarks.clients import ROOT, plain_environment
from benchmarks.inprocess import fresh_world
from benchmarks.inputs import MODEL
from benchmarks.measure import Row, Scale, percentile, program, progress

LINES = 400_000
SECONDS = 4.0
SHAPES = ((1, 200), (4, 200), (16, 200), (16, 20))  # processes, rows in a group
_OUTPUT = b'{"id": "batch_req_x", "response": {"body": "%b"}}' % (b"word " * 100)


def run(scale: Scale) -> Iterator[Row]:
    for processes, group in SHAPES:
        progress(f"{processes} process(es), groups of {group}")
        row = Row(f"recorded on one batch, {processes} processes, groups of {group}", "rows/s", [])
        for _ in range(scale.repeats):
            with fresh_world("postgresql") as (world, _project):
                lane_id = _fill(world.db)
                url = world.db.url.render_as_string(hide_password=False)
                told = _crowd(url, lane_id, processes, group, SECONDS)
            row.values.append(sum(each["rows"] for each in told) / SECONDS)
            waits = [wait for each in told for wait in each["waits"]]
            row.note = f"commit p50 {percentile(waits, 0.5) * 1000:.0f} ms, p99 {percentile(waits, 0.99) * 1000:.0f} ms"
        yield row


def _fill(db: Database) -> int:
    """One running batch whose slices are ready; there is no need for its requests."""
    with db.write() as conn:
        lane_id = ensure_lane(conn, "bench", "env:BENCH", MODEL)
        conn.execute(sa.text(_BATCH), {"lines": LINES, "lane": lane_id})
        firsts = range(1, LINES + 1, SLICE_MAX_LINES)
        conn.execute(sa.insert(slices), [
            {"batch_id": 1, "lane_id": lane_id, "route": [lane_id], "priority": 1, "position": position,
             "lines": pack_lines(range(first, first + SLICE_MAX_LINES)), "line_count": SLICE_MAX_LINES,
             "est_tokens": 1, "state": "ready"}
            for position, first in enumerate(firsts)
        ])  # fmt: skip
        conn.execute(sa.text(_LANE), {"lines": LINES, "lane": lane_id})
    return lane_id


def _crowd(url: str, lane_id: int, processes: int, group: int, seconds: float) -> list[dict[str, list[float]]]:
    """All start together, once each has its connections."""
    command = [sys.executable, "-m", "benchmarks.contention", "--one", url, str(lane_id), str(group), str(seconds)]
    crowd = [
        subprocess.Popen(command, cwd=ROOT, env=plain_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(processes)
    ]
    for each in crowd:
        assert each.stdout is not None
        each.stdout.readline()
    for each in crowd:
        assert each.stdin is not None
        each.stdin.write(b"go\n")
        each.stdin.flush()
    return [json.loads(each.communicate()[0]) for each in crowd]


def _one(url: str, lane_id: int, group: int, seconds: float) -> None:
    db, owner = Database(url), f"bench-{time.monotonic_ns()}"
    with db.read() as conn:
        conn.execute(sa.select(1))
    print("ready", flush=True)
    sys.stdin.readline()
    rows, waits, until = 0, [], time.monotonic() + seconds
    while time.monotonic() < until:
        for claim in claim_slices(db, lane_id, owner, want_lines=1, held_batches={1}):
            results = [
                LineResult(1, line, f"r{line}", True, _OUTPUT, usage=Usage(80, 0, 60, 0), billed=Usage(80, 0, 60, 0),
                           slice_id=claim.slice_id, epoch=claim.epoch)
                for line in claim.lines
            ]  # fmt: skip
            for start in range(0, len(results), group):
                began = time.monotonic()
                closing = [claim] if start + group >= len(results) else []
                rows += record_group(db, results[start : start + group], owner, closing).recorded
                waits.append(time.monotonic() - began)
    print(json.dumps({"rows": rows, "waits": waits}))


_BATCH = """
INSERT INTO batches (id, public_id, project_id, endpoint, completion_window, status, input_file, metadata, options,
                     warnings, report, priority, created_at, in_progress_at, expires_at, total)
VALUES (1, 'batch_1', 1, '/v1/chat/completions', '24h', 'in_progress', 'file-1', '{}', '{}', '[]', '{}', 1, 1, 1,
        32503680000000, :lines)
"""
_LANE = """
INSERT INTO batch_lanes (lane_id, batch_id, project_id, priority, deadline, ready_lines)
VALUES (:lane, 1, 1, 1, 32503680000000, :lines)
"""

if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _one(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
    else:
        sys.exit(program(run))
