"""Pacing: how much of a limit several processes use together, how many 429s that costs, how many Redis calls.

Each row is one kind of limit at one number of processes: Batchmill's pacer, window and retry decision (the
product's modules without its database), beside a semaphore loop that honours Retry-After and the rolling
60-second limiter of providers' pages. All against the same simulated provider.
    python -m benchmarks.pacing [--seconds 12] [--processes 1,4,8] [--kinds bucket,hard second] [--no-peers]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import uvloop
from redis.asyncio import Redis

from batch.clock import SYSTEM_CLOCK
from batch.domain.limits import Limits
from batch.domain.outcome import Failure, FailureKind, Success
from batch.domain.progress import LineState
from batch.domain.retry import Action, decide
from batch.telemetry import configure_logs
from benchmarks.stack import ROOT, plain_environment, upstream
from tests.harness.servers import running_valkey
from workers.concurrency import Window, first_size
from workers.pacer import Pacer
from workers.pacer_source import LanePaused
from workers.pacer_steps import Steps

WARM_UP_S = 2.0  # after the common start; not counted
PROMPT = "word " * 75  # with an answer limit of 100 about 200 tokens a call
CALL_TOKENS = 200
LATENCY = "lognormal:0.25,0.9"


@dataclass(frozen=True)
class Kind:
    """A limiter as the simulator enforces it, what Batchmill is told of it, and calls per second at its limit."""

    name: str
    enforced: list[dict[str, Any]]
    known: dict[str, Any]
    rate: float
    least: float  # utilisation that is aimed at
    most_429: float


def kinds() -> list[Kind]:
    """Windows are shorter than vendors' minutes, so that a short run shows their steady state."""
    requests: dict[str, Any] = {"what": "requests", "amount": 3_000, "per_s": 60}
    tokens = {"what": "tokens", "amount": 600_000, "per_s": 60, "over_s": 6, "charge": "reserve_max"}
    per_minute = {"requests_per_minute": 3_000}
    return [
        Kind("bucket", [{**requests, "over_s": 2}], per_minute, 50, 0.98, 0.005),
        Kind("fixed window", [{**requests, "kind": "fixed_window", "over_s": 5}], per_minute, 50, 0.98, 0.005),
        Kind("bucket of 1 s", [{**requests, "over_s": 1}], per_minute, 50, 0.98, 0.005),
        Kind(
            "hard second", [{"what": "requests", "amount": 100, "per_s": 1, "kind": "fixed_window"}],
            {"requests_per_second": 100, "hard_second": True}, 100, 0.97, 0.005,
        ),
        Kind("tokens", [tokens], {"tokens_per_minute": 600_000}, 600_000 / 60 / CALL_TOKENS, 0.98, 0.005),
        Kind(
            "requests and tokens", [{**requests, "over_s": 2}, tokens], {**per_minute, "tokens_per_minute": 600_000},
            50, 0.97, 0.005,
        ),
        Kind("concurrency", [{"what": "concurrency", "amount": 24}], {"concurrency": 24}, 0, 0.9, 0.005),
        Kind("unknown", [{**requests, "over_s": 2}], {}, 50, 0.9, 0.02),
        Kind("unknown concurrency", [{"what": "concurrency", "amount": 24}], {}, 0, 0.9, 0.02),
    ]  # fmt: skip


@dataclass
class Tally:
    """What one process saw after the warm-up. `busy_s` adds up the time of its answered calls."""

    answered: int = 0
    refused: int = 0
    redis_calls: int = 0
    busy_s: float = 0.0


# the clients: each is asked to keep calling until `until`


class Caller:
    """One process's connection to the provider; counts what falls into the measured span."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._client = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=30, trust_env=False)
        self._url = f"{job['base_url']}/chat/completions"
        self._body = json.dumps(
            {"model": "bench-model", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 100}
        ).encode()
        self.since, self.until = job["start"] + WARM_UP_S, job["start"] + WARM_UP_S + job["seconds"]
        self.tally = Tally()
        self.text = ""

    @property
    def is_over(self) -> bool:
        return time.time() >= self.until

    async def call(self) -> tuple[int, float | None, float]:
        """(status, Retry-After in seconds, latency). `text` is the last answer's."""
        began = time.time()
        headers = {"content-type": "application/json", "authorization": "Bearer bench"}
        answer = await self._client.post(self._url, content=self._body, headers=headers)
        took = time.time() - began
        self.text = answer.text
        if self.since <= began < self.until:
            if answer.status_code == 200:
                self.tally.answered += 1
                self.tally.busy_s += took
            else:
                self.tally.refused += 1
        wait = answer.headers.get("retry-after-ms") or answer.headers.get("retry-after")
        scale = 1_000 if "retry-after-ms" in answer.headers else 1
        return answer.status_code, float(wait) / scale if wait else None, took


async def batchmill(caller: Caller, job: dict[str, Any]) -> None:
    """Lines start as the window allows; permit, call, decide, as workers/ does."""
    redis = Redis.from_url(job["redis_url"])
    steps = Steps(redis)
    pacer = Pacer(steps, worker=f"w{os.getpid()}", live_workers=lambda: int(job["processes"]))
    lane = pacer.lane("bench", "none", "bench-model", Limits(**job["known"]))
    window = Window(start=first_size(lane.limits, job["processes"], is_engine=False), maximum=512)
    worth = lane.waiting_worth
    pacing, tasks = 0, set[asyncio.Task[None]]()

    async def line() -> None:
        nonlocal pacing
        state = LineState()
        while not caller.is_over:
            pacing += 1
            try:
                permit = await lane.permit(CALL_TOKENS, 100)
            except LanePaused as pause:
                await asyncio.sleep(min(1.0, max(0.0, pause.until - time.time())))
                continue
            finally:
                pacing -= 1
            window.on_start()
            status, wait, took = await caller.call()
            now = time.monotonic()
            if status == 200:
                window.on_success(now, took, 50)
                lane.done(permit, outcome=_ANSWER)
                return
            window.on_refusal(now)
            is_crowd = "concurrency_limit_exceeded" in caller.text
            kind = FailureKind.RATE_CONCURRENCY if is_crowd else FailureKind.RATE_LIMIT
            failure = Failure(kind, "", status=status, retry_after_s=wait)
            lane.done(permit, outcome=failure)
            decision = decide(failure, state, now=time.time(), deadline=None, rng=SYSTEM_CLOCK)
            state = decision.state
            if decision.action is Action.RETRY:
                await asyncio.sleep(decision.delay_s)

    while not caller.is_over:
        while len(tasks) < window.size and (not worth or pacing < worth) and not caller.is_over:
            task = asyncio.create_task(line())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(0)
        await asyncio.sleep(0.005)
    if tasks:
        await asyncio.wait(tasks, timeout=3)  # calls begun within the span are counted when they end
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    caller.tally.redis_calls = steps.calls
    await pacer.close()
    await redis.aclose()


async def semaphore(caller: Caller, job: dict[str, Any]) -> None:
    """64 calls at once over all processes; on 429 sleep Retry-After (else 1 s) and try again."""

    async def loop() -> None:
        while not caller.is_over:
            status, wait, _took = await caller.call()
            if status != 200:
                await asyncio.sleep(wait or 1.0)

    await asyncio.gather(*(loop() for _ in range(max(1, 64 // job["processes"]))))


async def rolling_minute(caller: Caller, job: dict[str, Any]) -> None:
    """At most limit × 60 s ÷ processes calls in any 60 s, sent as soon as that allows."""
    allowed = max(1, int((job["rate"] or 50) * 60 / job["processes"]))
    sent: deque[float] = deque()

    async def loop() -> None:
        while not caller.is_over:
            while sent and sent[0] < time.time() - 60:
                sent.popleft()
            if len(sent) >= allowed:
                await asyncio.sleep(0.05)
                continue
            sent.append(time.time())
            status, wait, _took = await caller.call()
            if status != 200:
                await asyncio.sleep(wait or 1.0)

    await asyncio.gather(*(loop() for _ in range(max(1, 64 // job["processes"]))))


_ANSWER = Success(200, b"{}", {})
CLIENTS: dict[str, Callable[[Caller, dict[str, Any]], Awaitable[None]]] = {
    "batchmill": batchmill, "semaphore": semaphore, "rolling minute": rolling_minute,
}  # fmt: skip


async def work(job: dict[str, Any]) -> Tally:
    caller = Caller(job)
    await asyncio.sleep(max(0.0, job["start"] - time.time()))
    await CLIENTS[job["client"]](caller, job)
    return caller.tally


# the measuring side


def measure(kind: Kind, client: str, processes: int, seconds: float) -> dict[str, float]:
    """One cell: utilisation, share of 429s, Redis calls per 1,000 answered requests."""
    with upstream() as server, running_valkey() as redis_url:
        server.set(latency=LATENCY, limits=kind.enforced, headers="none")
        job = {
            "base_url": server.base_url, "redis_url": redis_url, "client": client, "processes": processes,
            "seconds": seconds, "known": kind.known, "rate": kind.rate,
        }  # fmt: skip
        running = [_start_worker(job) for _ in range(processes)]
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()  # it is ready
        start = f"{time.time() + 0.2}\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write(start)
            process.stdin.flush()
        tallies = [Tally(**json.loads(process.communicate(timeout=seconds + 90)[0])) for process in running]
    answered = sum(tally.answered for tally in tallies)
    refused = sum(tally.refused for tally in tallies)
    if kind.rate:
        used = answered / (kind.rate * seconds)
    else:  # concurrency: the mean of calls in flight
        used = sum(tally.busy_s for tally in tallies) / seconds / kind.enforced[0]["amount"]
    total = seconds + WARM_UP_S
    redis_calls = sum(tally.redis_calls for tally in tallies) * seconds / total
    return {
        "used": used,
        "refused": refused / max(1, answered + refused),
        "redis": redis_calls / max(1, answered) * 1_000,
    }


def _start_worker(job: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.pacing", "--work", json.dumps(job)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=plain_environment(), stdin=pipe, stdout=pipe, text=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=12.0, help="measured span of each cell (12)")
    parser.add_argument("--processes", default="1,4,8", help="numbers of worker processes (1,4,8)")
    parser.add_argument("--kinds", help="only these kinds of limits, comma-separated")
    parser.add_argument("--no-peers", action="store_true", help="leave out the two usual clients")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.work:
        configure_logs()  # to stderr: a worker that paces alone would not be measured unnoticed
        print("ready", flush=True)
        job = {**json.loads(given.work), "start": float(sys.stdin.readline())}
        print(json.dumps(asdict(uvloop.run(work(job)))))
        return 0
    wanted = set(given.kinds.split(",")) if given.kinds else None
    print("| limit | client | processes | used | target | 429s | target | Redis calls per 1,000 |", flush=True)
    print("|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for kind in kinds():
        if wanted is not None and kind.name not in wanted:
            continue
        for processes in [int(part) for part in given.processes.split(",")]:
            for client in CLIENTS if not given.no_peers else ["batchmill"]:
                cell = measure(kind, client, processes, given.seconds)
                print(_row(kind, client, processes, cell), flush=True)
    return 0


def _row(kind: Kind, client: str, processes: int, cell: dict[str, float]) -> str:
    cells = [kind.name, client, str(processes), f"{cell['used']:.1%}", "", f"{cell['refused']:.2%}", "", ""]
    if client == "batchmill":
        cells[4], cells[6] = f"≥ {kind.least:.0%}", f"≤ {kind.most_429:.1%}"
        cells[7] = f"{cell['redis']:.0f}"
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
