"""How a benchmark measures and prints: rows, medians, spreads, CPU and memory of processes.

Owns: Row, the markdown table, CpuMeter, PSS. Every program here prints through this module.
May not touch: what is measured.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil


@dataclass(frozen=True)
class Scale:
    """How much to do: `repeats` of each row, `size` a factor on its lines (1.0 is what docs/benchmarks.md shows)."""

    repeats: int = 3
    size: float = 1.0
    peers: bool = True

    def lines(self, full: int, least: int = 100) -> int:
        return max(least, int(full * self.size))


@dataclass
class Row:
    """One line of the table. `values` are one per repeat, in `unit`; `target` is compared as `least` or `most`."""

    what: str
    unit: str
    values: list[float]
    least: float | None = None
    most: float | None = None
    cpu_us: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values) if self.values else float("nan")

    def markdown(self) -> str:
        target = f"≥ {_shown(self.least)}" if self.least is not None else f"≤ {_shown(self.most)}" if self.most else ""
        met = ""
        if self.values and self.least is not None:
            met = "yes" if self.median >= self.least else "no"
        elif self.values and self.most is not None:
            met = "yes" if self.median <= self.most else "no"
        spread = f"{_shown(min(self.values))} – {_shown(max(self.values))}" if len(self.values) > 1 else ""
        cpu = f"{statistics.median(self.cpu_us):.0f} µs" if self.cpu_us else ""
        median = f"{_shown(self.median)} {self.unit}" if self.values else "not measured"
        return f"| {self.what} | {median} | {spread} | {target} | {met} | {cpu} | {self.note} |"


HEADER = "| what | median | spread | target | met | CPU per request | note |\n|---|---|---|---|---|---|---|"


def program(run: Callable[[Scale], Iterable[Row]], arguments: list[str] | None = None) -> int:
    """The main of a row's own program: --repeats, --size, and a table on standard output."""
    parser = argparse.ArgumentParser(description=(sys.modules[run.__module__].__doc__ or "").splitlines()[0])
    add_scale_flags(parser)
    given = parser.parse_args(arguments)
    print(HEADER, flush=True)
    for row in run(scale_of(given)):
        print(row.markdown(), flush=True)
    return 0


def add_scale_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=3, help="measurements per row (3)")
    parser.add_argument("--size", type=float, default=1.0, help="factor on the number of lines (1.0)")
    parser.add_argument("--no-peers", action="store_true", help="leave out other people's clients")


def scale_of(given: argparse.Namespace) -> Scale:
    return Scale(given.repeats, given.size, not given.no_peers)


def machine() -> str:
    """One line about where this ran."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} cores, {memory:.0f} GB, Python {platform.python_version()}, {platform.platform()}"


def progress(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


@dataclass
class Elapsed:
    seconds: float = 0.0
    cpu_s: float = 0.0


@contextmanager
def timed(processes: Iterable[psutil.Process] = ()) -> Iterator[Elapsed]:
    """Wall time of the block, and the CPU time that `processes` (all threads) spent in it."""
    watched = list(processes)
    elapsed = Elapsed()
    before, started = sum(map(cpu_seconds, watched)), time.perf_counter()
    yield elapsed
    elapsed.seconds = time.perf_counter() - started
    elapsed.cpu_s = sum(map(cpu_seconds, watched)) - before


def cpu_seconds(process: psutil.Process) -> float:
    """User and system seconds so far; 0 for a process that has gone."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def pss_mb(processes: Iterable[psutil.Process]) -> float:
    """Proportional set size of all, in MB: shared pages count once (RSS where the system tells no PSS)."""
    total = 0
    for process in processes:
        try:
            info = process.memory_full_info()
            total += getattr(info, "pss", info.rss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total / 1e6


def rss_mb(processes: Iterable[psutil.Process]) -> float:
    """Resident set of the largest of them, in MB."""
    sizes = []
    for process in processes:
        try:
            sizes.append(process.memory_info().rss / 1e6)
        except psutil.NoSuchProcess:
            continue
    return max(sizes, default=0.0)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
