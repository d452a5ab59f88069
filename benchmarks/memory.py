"""A large file from upload to output: the largest resident size of API and workers, and whether it grows.

Owns: those rows. 1 M lines at --size 1.0 of this program alone; make bench runs a tenth.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.inputs import chat_file
from benchmarks.measure import Row, Scale, program, progress, rss_mb
from benchmarks.runs import run_batch
from benchmarks.stack import Service, service, upstream

LINES = 1_000_000
_SAMPLE_S = 0.5


def run(scale: Scale) -> Iterator[Row]:
    lines = scale.lines(LINES, 2_000)
    with tempfile.TemporaryDirectory(prefix="bm-memory-") as directory, upstream() as server:
        source = chat_file(Path(directory) / "in.jsonl", lines, 600)
        with service(server.base_url, limits="concurrency = 256") as running:
            progress(f"{lines:,} lines for memory")
            with Watch(running) as watch:
                run_batch(running, source, lines, timeout_s=3600)
    note = f"{lines:,} lines"
    yield Row("memory, API, largest", "MB RSS", [max(watch.api)], most=250, note=note)
    yield Row("memory, worker, largest", "MB RSS", [max(watch.worker)], most=350, note=note)
    yield Row("memory, job worker, largest", "MB RSS", [max(watch.jobs)], most=350, note=note)
    yield Row("memory, worker, growth from half-way to the end", "MB", [watch.growth()], note="flat is near 0")


class Watch:
    """Samples resident sizes from a thread while a block runs."""

    def __init__(self, running: Service) -> None:
        self._running = running
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.api: list[float] = [0.0]
        self.worker: list[float] = [0.0]
        self.jobs: list[float] = [0.0]

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def growth(self) -> float:
        half, end = self.worker[len(self.worker) // 2 :], self.worker[-3:]
        return max(end) - half[0]

    def _sample(self) -> None:
        while not self._done.is_set():
            self.api.append(rss_mb(self._running.named("batch.api")))
            self.worker.append(rss_mb(self._running.workers()))
            self.jobs.append(rss_mb(self._running.named("jobs@")))
            time.sleep(_SAMPLE_S)


if __name__ == "__main__":
    sys.exit(program(run))
