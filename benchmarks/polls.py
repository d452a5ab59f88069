"""500 status polls a second while a run is paced to half of capacity: poll latency and what it costs the worker.

Owns: those rows. The same paced run is measured without and with the polls.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pyreqwest.client import Client, ClientBuilder

from benchmarks.inputs import chat_file
from benchmarks.measure import Row, Scale, cpu_seconds, percentile, program, progress
from benchmarks.runs import run_batch
from benchmarks.stack import Service, service, upstream

POLLS_PER_S = 500
SECONDS = 10.0
CONNECTIONS = 16


def run(scale: Scale) -> Iterator[Row]:
    seconds = max(2.0, SECONDS * min(1.0, scale.size))
    latency = Row(f"status poll p99 at {POLLS_PER_S} polls/s", "ms", [], most=20)
    cost = Row("worker CPU per request, with polls ÷ without", "×", [], most=1.05)
    with tempfile.TemporaryDirectory(prefix="bm-polls-") as directory, upstream() as server:
        with service(server.base_url, limits="concurrency = 128") as running:
            trial = scale.lines(10_000, 1_000)
            capacity = run_batch(running, chat_file(Path(directory) / "trial.jsonl", trial), trial).steady_rate
        rate = max(50, int(capacity / 2))
        progress(f"capacity {capacity:,.0f}/s, paced to {rate:,}/s")
        source = chat_file(Path(directory) / "in.jsonl", int(rate * (2 * seconds + 4) * scale.repeats))
        with service(server.base_url, limits=f"requests_per_second = {rate}") as running:
            batch_id = running.create(running.upload(source))
            running.wait(batch_id, {"in_progress"})
            time.sleep(2)
            for _ in range(scale.repeats):
                quiet, _ = asyncio.run(_watch(running, batch_id, seconds, polling=False))
                busy, times = asyncio.run(_watch(running, batch_id, seconds, polling=True))
                latency.values.append(percentile(times, 0.99) * 1000)
                latency.note = f"{len(times) / seconds:.0f} polls/s reached, p50 {percentile(times, 0.5) * 1000:.1f} ms"
                cost.values.append(busy / quiet)
                cost.cpu_us.append(busy * 1e6)
            running.client.post(f"/v1/batches/{batch_id}/cancel")
    yield latency
    yield cost


async def _watch(running: Service, batch_id: str, seconds: float, *, polling: bool) -> tuple[float, list[float]]:
    """Worker CPU seconds per request during `seconds`, and the latencies of the polls made meanwhile."""
    workers = running.workers()
    before, cpu = _completed(running, batch_id), sum(map(cpu_seconds, workers))
    times: list[float] = []
    if polling:
        url = f"{str(running.client.base_url).rstrip('/')}/v1/batches/{batch_id}"
        async with ClientBuilder().no_proxy().build() as client:  # a lean client: its own cost must not show
            until = time.perf_counter() + seconds
            await asyncio.gather(*(_poll(client, url, until, n, times) for n in range(CONNECTIONS)))
    else:
        await asyncio.sleep(seconds)
    done = _completed(running, batch_id) - before
    if done <= 0:
        raise RuntimeError("the run ended before the polls did: raise --size")
    return (sum(map(cpu_seconds, workers)) - cpu) / done, times


async def _poll(client: Client, url: str, until: float, number: int, times: list[float]) -> None:
    """One of CONNECTIONS pollers, each at its share of the rate; a late poll is sent at once."""
    step = CONNECTIONS / POLLS_PER_S
    due = time.perf_counter() + step * number / CONNECTIONS
    while due < until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        began = time.perf_counter()
        answer = await client.get(url).build().send()
        await answer.bytes()
        times.append(time.perf_counter() - began)
        due += step


def _completed(running: Service, batch_id: str) -> int:
    return int(running.batch(batch_id)["request_counts"]["completed"])


if __name__ == "__main__":
    sys.exit(program(run))
