"""Finalize: a sealed batch's results into output files, in input order; and recording them, in groups of 500.

Owns: lines/s of both, in one process, database and files included. Answers are about 0.5 kB.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import orjson
import psutil

from batch.completions.output_line import response_line
from batch.domain.ids import line_id
from batch.domain.outcome import Usage
from batch.domain.result import LineResult
from batch.operations.finalize import finalize_batch
from batch.operations.ingest import ingest_batch
from batch.settings import GROUP_ROWS
from batch.storage.results import record_group
from benchmarks.inprocess import fresh_world, submit
from benchmarks.inputs import chat_file
from benchmarks.measure import Row, Scale, program, progress, timed

LINES = 60_000


def run(scale: Scale) -> Iterator[Row]:
    lines = scale.lines(LINES, 1_000)
    with tempfile.TemporaryDirectory(prefix="bm-finalize-") as directory:
        source = chat_file(Path(directory) / "in.jsonl", lines, 300)
        for database in ("sqlite", "postgresql"):
            progress(f"finalize, {database}, {lines:,} lines")
            record = Row(f"record results in groups of {GROUP_ROWS}, {database}", "lines/s", [])
            write = Row(f"finalize, {database}", "lines/s", [], least=80_000)
            for _ in range(scale.repeats):
                _once(database, source, lines, record, write)
            yield record
            yield write


def _once(database: str, source: Path, lines: int, record: Row, write: Row) -> None:
    here = [psutil.Process()]
    with fresh_world(database) as (world, project):
        batch_id = submit(world, project, source)
        if (came_of_it := ingest_batch(world, batch_id, "bench")) != "started":
            raise RuntimeError(f"ingest came to {came_of_it!r}")
        rows = [_result(batch_id, number) for number in range(1, lines + 1)]
        with timed(here) as spent:
            for start in range(0, lines, GROUP_ROWS):
                record_group(world.db, rows[start : start + GROUP_ROWS], "bench")
        record.values.append(lines / spent.seconds)
        record.cpu_us.append(spent.cpu_s / lines * 1e6)
        with timed(here) as spent:
            status = finalize_batch(world, batch_id, "bench")
        if status != "completed":
            raise RuntimeError(f"finalize came to {status!r}")
        write.values.append(lines / spent.seconds)
        write.cpu_us.append(spent.cpu_s / lines * 1e6)


def _result(batch_id: int, number: int) -> LineResult:
    message = {"role": "assistant", "content": "one two three four " * 15, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 80, "completion_tokens": 60, "total_tokens": 140}
    body = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice],
            "usage": usage}  # fmt: skip
    name = f"r{number}"
    text = response_line(line_id("batch_bench", number), name, orjson.dumps(body), {"attempts": 1}, request_id="req_x")
    return LineResult(batch_id, number, name, True, text, usage=Usage(80, 0, 60, 0), billed=Usage(80, 0, 60, 0))


if __name__ == "__main__":
    sys.exit(program(run))
