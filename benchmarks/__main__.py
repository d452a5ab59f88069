"""All rows of the table, one after another: make bench, or python -m benchmarks [NAMES].

Owns: the order, the sizes that keep the whole under a quarter of an hour, and what happens when a row fails.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback

from benchmarks.measure import HEADER, Scale, add_scale_flags, machine, progress, scale_of

# Each program with the share of its own full size that the whole table uses.
PROGRAMS: dict[str, float] = {
    "simulator": 1.0,
    "e2e": 0.5,
    "inflight": 1.0,
    "ingest": 1.0,
    "upload_download": 0.5,
    "finalize": 1.0,
    "claim": 0.1,
    "contention": 1.0,
    "polls": 0.5,
    "idle": 0.7,
    "memory": 0.1,
}


def main() -> int:
    """1 when a row could not be measured; a missed target is no failure."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows to run (all): {', '.join(PROGRAMS)}")
    add_scale_flags(parser)
    given = parser.parse_args()
    if unknown := set(given.names) - set(PROGRAMS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(PROGRAMS)}")
    asked = scale_of(given)
    print(f"{machine()}, {time.strftime('%Y-%m-%d')}\n\n{HEADER}", flush=True)
    failed = []
    for name in given.names or PROGRAMS:
        began = time.perf_counter()
        try:
            _print_rows(name, Scale(asked.repeats, asked.size * PROGRAMS[name], asked.peers))
        except Exception:  # one row that cannot run must not cost the others
            failed.append(name)
            traceback.print_exc()
        progress(f"{name}: {time.perf_counter() - began:.0f} s")
    if failed:
        print(f"\nnot measured: {', '.join(failed)}")
    return 1 if failed else 0


def _print_rows(name: str, scale: Scale) -> None:
    for row in importlib.import_module(f"benchmarks.{name}").run(scale):
        print(row.markdown(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
