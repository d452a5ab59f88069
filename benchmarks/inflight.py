"""2,000 calls in flight in one worker process with a 1 s upstream: the share of the ideal rate.

Owns: that row. Ideal is in flight ÷ latency; the rate is taken between 20 % and 80 % of the lines.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.inputs import chat_file
from benchmarks.measure import Row, Scale, program
from benchmarks.runs import run_batch
from benchmarks.stack import service, upstream

LINES = 24_000
IN_FLIGHT = 2_000


def run(scale: Scale) -> Iterator[Row]:
    at_once = IN_FLIGHT if scale.size >= 0.25 else max(100, int(IN_FLIGHT * scale.size))
    lines = max(scale.lines(LINES), 6 * at_once)
    row = Row(f"share of the ideal rate, {at_once:,} in flight, 1 s upstream", "%", [], least=95)
    with tempfile.TemporaryDirectory(prefix="bm-inflight-") as directory, upstream("--latency", "1") as server:
        source = chat_file(Path(directory) / "in.jsonl", lines)
        with service(server.base_url, limits=f"concurrency = {at_once}") as running:
            for _ in range(scale.repeats):
                done = run_batch(running, source, lines)
                row.values.append(100 * done.steady_rate / at_once)
                row.cpu_us.append(done.cpu_us)
            row.note = f"most in flight seen upstream: {server.totals()['most_in_flight']:,}"
    yield row


if __name__ == "__main__":
    sys.exit(program(run))
