"""What a user of a rate-limited provider feels: first call, whole time against the ideal, the last lines, the ETA.

One jobs and one or more calls workers as real processes, 600 lines at 30 requests a second, one batch; the witness
is the simulated provider's log.
    python -m benchmarks.felt [--lines 600] [--rate 30] [--workers 1]
"""

from __future__ import annotations

import argparse
import sys
import time

from batch.simulator.config import Latency, Limit
from batch.storage.batches import BatchRow
from tests.harness.mill import MODEL, Mill, running_mill
from tests.harness.worlds import load, request_line

MEDIAN_S, P99_S = 0.4, 1.2


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lines", type=int, default=600)
    parser.add_argument("--rate", type=float, default=30.0, help="requests a second, known and enforced")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("-v", action="store_true", help="every ETA that was told: (really left, told, share done)")
    given = parser.parse_args(arguments)
    with running_mill({"sim": {"requests_per_second": given.rate}}, workers=given.workers) as mill:
        limit = Limit("requests", given.rate, 1.0, "token_bucket", 1.0)
        mill.simulator.reconfigure(latency=Latency("lognormal", MEDIAN_S, P99_S), limits=(limit,))
        lines = [request_line(f"c{number}", model=MODEL) for number in range(given.lines)]
        created = time.time()
        batch = mill.submit(lines)
        ended, worst_eta = watch(mill, batch)
        report(mill, created, ended, given.rate, worst_eta)
    return 0


def watch(mill: Mill, batch: BatchRow) -> tuple[float, float]:
    """Looks every half second, as `status -w` does; when all lines were recorded, and the ETA's worst error."""
    told: list[tuple[float, float, float]] = []
    while load(mill.world, batch).sealed_at is None:
        story = mill.story(batch)
        counts = story["counts"]
        share = (counts["completed"] + counts["failed"]) / max(1, counts["total"])
        if story["eta_s"] and 0.05 <= share < 0.95:
            told.append((time.time(), story["eta_s"], share))
        time.sleep(0.5)
    ended = (load(mill.world, batch).sealed_at or 0) / 1000
    if "-v" in sys.argv:
        print([(round(ended - at, 2), round(eta, 2), round(share, 2)) for at, eta, share in told])
    return ended, max((abs(at + eta - ended) / (ended - at) for at, eta, _ in told), default=float("nan"))


def report(mill: Mill, created: float, ended: float, rate: float, worst_eta: float) -> None:
    """The tail is what the last 1 % took beyond the time in which the limit lets that many calls go."""
    calls = mill.calls()
    sent = sorted(call.time for call in calls if call.status == 200)
    took, ideal = ended - sent[0], len(sent) / rate + P99_S
    last = max(2, len(sent) // 100)
    tail = ended - sent[-last] - last / rate
    rows = [
        ("first call after create", f"{sent[0] - created:.2f} s", "≤ 2 s"),
        ("from first call to the end", f"{took:.1f} s = {took / ideal:.3f} × ideal", "≤ 1.02 ×"),
        ("last 1 % of the lines, beyond the limit's own time", f"{tail:.2f} s", f"≤ {2 * P99_S:g} s"),
        ("429s", str(sum(call.status == 429 for call in calls)), "≤ 0.5 %"),
        ("worst ETA from 5 % to 95 %", f"{worst_eta:.1%} off", "≤ 15 %"),
    ]
    for name, value, target in rows:
        print(f"| {name} | {value} | {target} |")


if __name__ == "__main__":
    sys.exit(main())
