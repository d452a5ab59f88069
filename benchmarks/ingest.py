"""Ingest: validate and store an uploaded file, on SQLite and PostgreSQL, 500-byte and 2 kB lines.

Owns: lines/s and MB/s of one ingest in one process, database included.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from batch.operations.ingest import ingest_batch
from benchmarks.inprocess import fresh_world, submit
from benchmarks.inputs import chat_file
from benchmarks.measure import Row, Scale, program, progress, timed

LINES = 100_000


def run(scale: Scale) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="bm-ingest-") as directory:
        small = chat_file(Path(directory) / "small.jsonl", scale.lines(LINES, 1_000), 500)
        large = chat_file(Path(directory) / "large.jsonl", scale.lines(LINES // 2, 1_000), 2_000)
        for database, least in (("sqlite", 25_000.0), ("postgresql", 40_000.0)):
            progress(f"ingest, {database}")
            lines = Row(f"ingest, {database}, 500-byte lines", "lines/s", [], least=least)
            megabytes = Row(f"ingest, {database}, 2 kB lines", "MB/s", [], least=60)
            for _ in range(scale.repeats):
                _once(database, small, lines, in_megabytes=False)
                _once(database, large, megabytes, in_megabytes=True)
            yield lines
            yield megabytes


def _once(database: str, path: Path, row: Row, *, in_megabytes: bool) -> None:
    count = sum(block.count(b"\n") for block in iter(path.open("rb").read, b""))
    with fresh_world(database) as (world, project):
        batch_id = submit(world, project, path)
        with timed([psutil.Process()]) as spent:
            came_of_it = ingest_batch(world, batch_id, "bench")
        if came_of_it != "started":
            raise RuntimeError(f"ingest came to {came_of_it!r}")
    amount = path.stat().st_size / 1e6 if in_megabytes else count
    row.values.append(amount / spent.seconds)
    row.cpu_us.append(spent.cpu_s / count * 1e6)


if __name__ == "__main__":
    sys.exit(program(run))
