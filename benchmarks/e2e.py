"""End to end, 0 ms upstream, everything durable: SQLite and PostgreSQL, both transports, beside what others use.

Owns: the rows of requests/s and worker CPU per request, and the ratios to the bare loop and the peers.
Requests are 1.6 kB, answers about 0.5 kB; every row of one repeat runs on the same file and the same upstream.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.clients import SHOWN, PeerMissing, run_bare, run_peer
from benchmarks.inputs import chat_file
from benchmarks.measure import Row, Scale, program, progress
from benchmarks.runs import BatchRun, run_batch
from benchmarks.stack import Upstream, service, upstream

LINES = 40_000
PEER_LINES = {"aiohttp_append": 20_000, "cookbook": 4_000, "openai_semaphore": 3_000, "litellm_batch": 1_500}
PEER_TARGETS = {"aiohttp_append": 1.0, "cookbook": 5.0, "openai_semaphore": 10.0, "litellm_batch": 10.0}
LIMITS = "concurrency = 256"


def run(scale: Scale) -> Iterator[Row]:
    lines = scale.lines(LINES, 2_000)
    with tempfile.TemporaryDirectory(prefix="bm-e2e-") as directory, upstream() as server:
        source = chat_file(Path(directory) / "in.jsonl", lines)
        bare = {
            kind: [run_bare(kind, source, server.base_url) for _ in range(scale.repeats)]
            for kind in ("httpx", "direct")
        }
        for kind, runs in bare.items():
            yield Row(f"bare loop, {kind}", "requests/s", [r.rate for r in runs], cpu_us=[r.cpu_us for r in runs])
        product: dict[tuple[str, str, int], list[BatchRun]] = {}
        for database, kind, workers in (
            ("sqlite", "httpx", 1), ("sqlite", "direct", 1), ("postgresql", "direct", 1), ("postgresql", "direct", 2),
        ):  # fmt: skip
            product[database, kind, workers] = _measure(server, source, lines, database, kind, workers, scale.repeats)
        yield from _product_rows(product)
        yield from _ratio_rows(product, {kind: [r.cpu_us for r in runs] for kind, runs in bare.items()})
        if scale.peers:
            yield from _peer_rows(product["sqlite", "direct", 1], Path(directory), server, scale)
    yield from _latency_bound(scale)


def _measure(
    server: Upstream, source: Path, lines: int, database: str, kind: str, workers: int, repeats: int
) -> list[BatchRun]:
    progress(f"{lines:,} lines, {database}, {kind}, {workers} worker(s)")
    with service(server.base_url, database=database, workers=workers, transport=kind, limits=LIMITS) as running:
        run_batch(running, chat_file(source.with_name("warm.jsonl"), 500), 500)
        return [run_batch(running, source, lines) for _ in range(repeats)]


def _product_rows(product: dict[tuple[str, str, int], list[BatchRun]]) -> Iterator[Row]:
    """Per worker core: what one core of worker CPU carries, whatever else the machine had to do meanwhile."""
    targets = {("sqlite", "httpx", 1): 3_500.0, ("sqlite", "direct", 1): 6_000.0}
    for (database, kind, workers), runs in product.items():
        name = f"batchmill, {database}, {kind}, {workers} worker" + ("s" if workers > 1 else "")
        yield Row(name, "requests/s", [r.rate for r in runs], cpu_us=[r.cpu_us for r in runs])
        per_core = [1e6 / r.cpu_us for r in runs]
        yield Row(name + ", per worker core", "requests/s", per_core, least=targets.get((database, kind, workers)))


def _ratio_rows(product: dict[tuple[str, str, int], list[BatchRun]], bare_cpu: dict[str, list[float]]) -> Iterator[Row]:
    for kind in ("httpx", "direct"):
        pairs = zip(product["sqlite", kind, 1], bare_cpu[kind], strict=True)
        yield Row(f"CPU per request ÷ bare loop, {kind}", "×", [r.cpu_us / cpu for r, cpu in pairs], most=3.5)
    one, two = product["postgresql", "direct", 1], product["postgresql", "direct", 2]
    sqlite = product["sqlite", "direct", 1]
    yield Row("CPU per request, PostgreSQL ÷ SQLite", "×", _over(one, sqlite), most=1.15)
    yield Row("CPU per request, two workers ÷ one", "×", _over(two, one), most=1.15)


def _over(first: list[BatchRun], second: list[BatchRun]) -> list[float]:
    return [a.cpu_us / b.cpu_us for a, b in zip(first, second, strict=True)]


def _peer_rows(ours: list[BatchRun], directory: Path, server: Upstream, scale: Scale) -> Iterator[Row]:
    mine = sorted(r.rate for r in ours)[len(ours) // 2]
    for name, full in PEER_LINES.items():
        lines = scale.lines(full, 200)
        source = chat_file(directory / f"{name}.jsonl", lines)
        progress(f"{SHOWN[name]}, {lines:,} lines")
        try:
            runs = [run_peer(name, source, server.base_url) for _ in range(scale.repeats)]
        except (PeerMissing, RuntimeError) as error:
            yield Row(SHOWN[name], "requests/s", [], note=str(error).splitlines()[-1][:120])
            continue
        yield Row(SHOWN[name], "requests/s", [r.rate for r in runs], cpu_us=[r.cpu_us for r in runs])
        yield Row(f"batchmill ÷ {SHOWN[name]}", "×", [mine / r.rate for r in runs], least=PEER_TARGETS[name])


def _latency_bound(scale: Scale) -> Iterator[Row]:
    """Two workers against one where the upstream, not the CPU, is the limit: 64 in flight each, 100 ms."""
    lines = scale.lines(8_000, 1_000)
    rates: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bm-e2e-") as directory, upstream("--latency", "0.1") as server:
        source = chat_file(Path(directory) / "in.jsonl", lines)
        for workers in (1, 2):
            with service(
                server.base_url, database="postgresql", workers=workers, limits=f"concurrency = {64 * workers}"
            ) as running:
                rates[workers] = [run_batch(running, source, lines).steady_rate for _ in range(scale.repeats)]
    pairs = zip(rates[2], rates[1], strict=True)
    yield Row("two workers ÷ one, 100 ms upstream", "×", [two / one for two, one in pairs], least=1.9)


if __name__ == "__main__":
    sys.exit(program(run))
