"""A large file while a worker is killed: does each line come out once, in input order, in bounded memory?

Owns: that check, on SQLite and on PostgreSQL. 100,000 lines at --size 1.0; a lost, doubled or misplaced
line raises. Every hundredth line is refused by the provider, so that both files have lines.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from benchmarks.inputs import chat_file
from benchmarks.measure import Row, Scale, program, progress
from benchmarks.memory import Watch
from benchmarks.stack import Service, service, upstream

LINES = 100_000
_REFUSED = {"kind": "status", "status": 400, "rate": 0.01, "sticky": True}


def run(scale: Scale) -> Iterator[Row]:
    for database in ("sqlite", "postgresql"):
        yield from measure(database, scale.lines(LINES, 500))


def measure(database: str, lines: int, *, with_a_death: bool = True) -> Iterator[Row]:
    """The rows of one database; a death costs a minute, until the lease ends.

    Raises RuntimeError when the two files are not the lines of the input, once and in order.
    """
    with tempfile.TemporaryDirectory(prefix="bm-lines-") as directory, upstream() as server:
        server.set(faults=[_REFUSED])
        source = chat_file(Path(directory) / "in.jsonl", lines, 600)
        with service(server.base_url, database=database, workers=2, limits="concurrency = 256") as running:
            progress(f"{lines:,} lines on {database}")
            with Watch(running) as watch:
                batch = _run_through(running, source, lines, with_a_death)
                kept = require_every_line(running, batch, lines)
    yield Row(f"{database}: lines once, in order", "lines", [sum(kept)], note=f"{kept[0]:,} output, {kept[1]:,} error")
    yield Row(f"{database}: memory, API, largest", "MB RSS", [max(watch.api)], most=300)
    yield Row(f"{database}: memory, two workers, largest", "MB RSS", [max(watch.worker)], most=800)
    yield Row(f"{database}: memory, job worker, largest", "MB RSS", [max(watch.jobs)], most=400)


def require_every_line(running: Service, batch: dict[str, Any], lines: int) -> tuple[int, int]:
    """How many lines the output and the error file hold. Raises unless together they are r1 … r`lines`, sorted."""
    files = [list(_numbers(running, batch[name])) for name in ("output_file_id", "error_file_id")]
    for numbers in files:
        if numbers != sorted(numbers):
            raise RuntimeError("lines are not in the order of the input")
    if sorted(files[0] + files[1]) != list(range(1, lines + 1)):
        raise RuntimeError(f"{lines} lines became {len(files[0])} and {len(files[1])}, or other ones")
    return len(files[0]), len(files[1])


def _run_through(running: Service, source: Path, lines: int, with_a_death: bool) -> dict[str, Any]:
    batch_id = running.create(running.upload(source))
    running.wait(batch_id, {"in_progress", "finalizing", "completed"}, 600)
    if with_a_death:
        while _ended(running.batch(batch_id)) < lines // 2:
            time.sleep(0.1)
        running.workers()[0].send_signal(signal.SIGKILL)
    return running.wait(batch_id, {"completed"}, 900)


def _ended(batch: dict[str, Any]) -> int:
    counts = batch["request_counts"]
    return int(counts["completed"] + counts["failed"])


def _numbers(running: Service, file_id: str | None) -> Iterable[int]:
    if file_id is None:
        return
    with running.client.stream("GET", f"/v1/files/{file_id}/content") as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            yield int(orjson.loads(line)["custom_id"].removeprefix("r"))


if __name__ == "__main__":
    sys.exit(program(run))
