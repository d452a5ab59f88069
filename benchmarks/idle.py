"""The embedded stack with nothing to do: CPU share and memory of all its processes.

Owns: those two rows. Memory is PSS, so that pages shared by forks count once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from benchmarks.measure import Row, Scale, program, pss_mb, timed
from benchmarks.stack import service, upstream

SETTLE_S = 8.0
WATCH_S = 15.0


def run(scale: Scale) -> Iterator[Row]:
    cpu = Row("idle, CPU of the whole stack", "% of a core", [], most=2)
    memory = Row("idle, memory of the whole stack", "MB PSS", [], most=400)
    with upstream() as server, service(server.base_url) as running:
        time.sleep(SETTLE_S)
        for _ in range(scale.repeats):
            processes = running.all()
            with timed(processes) as spent:
                time.sleep(max(3.0, WATCH_S * min(1.0, scale.size)))
            cpu.values.append(100 * spent.cpu_s / spent.seconds)
            memory.values.append(pss_mb(processes))
        memory.note = f"{len(processes)} processes"
    yield cpu
    yield memory


if __name__ == "__main__":
    sys.exit(program(run))
