"""One batch through a running service, timed from the first call to the last result.

Owns: submitting, watching, and what is read off: requests a second, worker CPU per request.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import cpu_seconds
from benchmarks.stack import Service

_POLL_S = 0.1


@dataclass
class BatchRun:
    """`seconds` from in_progress to the last result; `steady_rate` between 20 % and 80 % of the lines."""

    lines: int
    seconds: float
    worker_cpu_s: float
    steady_rate: float
    failed: int

    @property
    def rate(self) -> float:
        return self.lines / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.worker_cpu_s / self.lines * 1e6


def run_batch(running: Service, path: Path, lines: int, *, timeout_s: float = 900) -> BatchRun:
    """Upload, create, wait; raises when the batch fails or lines are missing."""
    batch_id = running.create(running.upload(path))
    running.wait(batch_id, {"in_progress", "finalizing", "completed"}, timeout_s, every_s=0.02)
    workers = running.workers()
    began, cpu = time.perf_counter(), sum(map(cpu_seconds, workers))
    marks: list[tuple[float, int]] = []
    while True:
        seen = running.batch(batch_id)
        done = seen["request_counts"]["completed"] + seen["request_counts"]["failed"]
        marks.append((time.perf_counter() - began, done))
        if done >= lines or seen["status"] not in {"in_progress", "finalizing"}:
            break
        if marks[-1][0] > timeout_s:
            raise TimeoutError(f"{done} of {lines} lines after {timeout_s:g} s")
        time.sleep(_POLL_S)
    spent = sum(map(cpu_seconds, workers)) - cpu
    seen = running.wait(batch_id, {"completed"}, timeout_s)
    if seen["request_counts"]["total"] != lines:
        raise RuntimeError(f"{lines} lines became {seen['request_counts']}")
    return BatchRun(lines, marks[-1][0], spent, _steady(marks, lines), seen["request_counts"]["failed"])


def _steady(marks: list[tuple[float, int]], lines: int) -> float:
    inside = [mark for mark in marks if 0.2 * lines <= mark[1] <= 0.8 * lines]
    if len(inside) < 2 or inside[-1][0] <= inside[0][0]:
        return lines / marks[-1][0]
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])
