"""Hours of pacing in seconds: real pacers and windows of several workers, on a loop whose time jumps.

Redis is played in memory (the scripts themselves are compared with domain.gcra in test_pacer_laws), the
provider by a bucket, a counter per second or a number of slots; nothing here waits or depends on the machine.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from collections import Counter
from dataclasses import replace

from batch.domain.found_limit import Found, Seen
from batch.domain.gcra import Meter
from batch.domain.limits import Limits
from batch.domain.outcome import Failure, FailureKind, Success
from workers.concurrency import Window, first_size
from workers.pacer import Pacer
from workers.pacer_steps import Lease

EPOCH = 1_790_000_000.0
OK = Success(200, b"{}", {})
REFUSED_AFTER_S = 0.05
_SPREAD = math.log(0.9 / 0.25) / 2.326
MEAN_LATENCY_S = 0.25 * math.exp(_SPREAD**2 / 2)  # of a lognormal with median 0.25 s and p99 0.9 s


class _Jump(selectors.SelectSelector):
    """Waits by moving the loop's time on."""

    now = 0.0

    def select(self, timeout=None):
        self.now += max(0.0, timeout or 0.0)
        return []


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.jump = _Jump()
        super().__init__(self.jump)

    def time(self):
        return self.jump.now


class LoopClock:
    """batch.clock.Clock on a JumpingLoop."""

    def __init__(self, loop, seed):
        self._loop, self._random = loop, random.Random(seed)
        self.monotonic = loop.time
        self.uniform = self._random.uniform

    def now(self):
        return EPOCH + self._loop.time()

    async def sleep_async(self, seconds):
        await asyncio.sleep(max(0.0, seconds))


class SharedSteps:
    """What all workers have in Redis; each call takes a millisecond."""

    calls = 0

    def __init__(self, clock):
        self._clock, self.is_away = clock, False
        self._meter, self._last_at, self._shares = Meter(), 0.0, {}
        self.found, self._seen = Found(), Seen()

    async def _trip(self):
        self.calls += 1
        if self.is_away:
            raise OSError("away")
        await asyncio.sleep(0.001)

    async def lease(self, buckets, costs, *, ahead_s, settled=None):
        await self._trip()
        now, dims = self._clock.monotonic(), [dim for bucket in buckets for dim in bucket.dims]
        grant = self._meter.lease(now, costs, dims, use=min(bucket.use for bucket in buckets), ahead_s=ahead_s)
        if grant.slots:
            self._last_at = now + grant.slots[-1]
        return Lease(grant.slots, grant.wait_s, int(now * 1e6), buckets[0].use, False, None)

    async def give_back(self, buckets, costs, *, last_us, before_us):
        return False

    async def refused(self, buckets, hold_s=0.0):
        await self._trip()
        self._meter.hold(self._clock.monotonic(), hold_s)

    async def share(self, key, worker, *, cap, in_use, want):
        await self._trip()
        now = self._clock.monotonic()
        others = [row for name, row in self._shares.items() if name != worker and row[2] > now]
        wants, left, fair = sorted([want, *(row[1] for row in others)]), cap, want
        for position, other in enumerate(wants):
            level = left // (len(wants) - position)
            if want <= other:
                fair = min(want, max(1, level))
                break
            left -= min(other, level)
        grant = max(0, min(fair, cap - sum(row[0] for row in others)))
        self._shares[worker] = (max(in_use, grant), want, now + 20.0)
        return grant

    async def count(self, bucket, used):
        await self._trip()

    async def tell(self, key, seen):
        await self._trip()
        old = self._seen
        self._seen = Seen(
            old.started + seen.started, old.refused + seen.refused, old.crowded + seen.crowded,
            old.busy_s + seen.busy_s, old.pressing + seen.pressing, max(old.asked_s, seen.asked_s),
        )  # fmt: skip
        return self._clock.now(), self._seen, self.found

    async def adopt(self, key, before, after, used):
        await self._trip()
        if before != self.found:
            return False
        left = [getattr(self._seen, name) - getattr(used, name) for name in Seen.__dataclass_fields__]
        self.found, self._seen = after, replace(Seen(*left), asked_s=0.0)
        return True


class Provider:
    """Admits by what is set of: `rate` a second (a bucket `depth_s` deep, or counted per `depth_s` when
    `is_hard`), `slots` at once. `noise` refuses, resets or hangs that share of calls, whatever the load."""

    def __init__(self, clock, *, rate=None, depth_s=2.0, is_hard=False, slots=None, noise="", tells_wait=False):
        self.clock, self.rate, self.depth_s, self.is_hard, self.slots = clock, rate, depth_s, is_hard, slots
        self.noise, self.tells_wait = noise, tells_wait
        self.rng = random.Random(7)
        self.running, self.level, self.at, self.counted = 0, (rate or 0) * depth_s, 0.0, (0, 0)
        self.answers = Counter()  # (minute, "ok" | "refused" | …)

    async def call(self):
        kind, wait_s = self._judge(self.clock.monotonic())
        if kind == "ok":
            self.running += 1
            await asyncio.sleep(0.25 * math.exp(_SPREAD * self.rng.gauss(0, 1)))
            self.running -= 1
        else:
            await asyncio.sleep(5.0 if kind == "hang" else REFUSED_AFTER_S)
        self.answers[int(self.clock.monotonic() // 60), kind] += 1
        return OK if kind == "ok" else Failure(_KINDS[kind], "", status=429, retry_after_s=wait_s)

    def _judge(self, now):
        if self.noise and self.rng.random() < 0.01:
            return self.noise, None
        if self.slots is not None and self.running >= self.slots:
            return "crowd", None
        if self.rate is not None and not self._take(now):
            left = (now // self.depth_s + 1) * self.depth_s - now if self.is_hard else 1 / self.rate
            return "refused", left if self.tells_wait else None
        return "ok", None

    def _take(self, now):
        if self.is_hard:
            window, count = int(now // self.depth_s), self.counted[1] + 1
            self.counted = (window, count if window == self.counted[0] else 1)
            return self.counted[1] <= self.rate * self.depth_s
        self.level = min(self.rate * self.depth_s, self.level + (now - self.at) * self.rate)
        self.at = now
        passes = self.level >= 1
        self.level -= passes
        return passes


_KINDS = {
    "refused": FailureKind.RATE_LIMIT, "crowd": FailureKind.RATE_CONCURRENCY, "hang": FailureKind.TIMEOUT,
    "reset": FailureKind.DISCONNECT, "error": FailureKind.SERVER_ERROR,
}  # fmt: skip


class Worker:
    """Keeps its window full, as workers/lane.py does, with lines that never end."""

    def __init__(self, name, limits, provider, steps, clock, live):
        self.pacer = Pacer(steps, worker=name, clock=clock, live_workers=lambda: live)
        self.lane = self.pacer.lane("p", "k", "m", limits)
        start = first_size(limits, live, is_engine=False)
        self.window = Window(start=start, maximum=limits.concurrency or 512)
        self._clock, self._provider = clock, provider
        self._runners, self._waiting = set(), 0

    def fill(self):
        while self._may_run() and len(self._runners) < self.window.size:
            task = asyncio.ensure_future(self._run())
            self._runners.add(task)
            task.add_done_callback(self._runners.discard)
            self._waiting += 1

    def _may_run(self):
        worth = self.lane.waiting_worth
        return not worth or self._waiting < worth

    async def _run(self):
        while True:
            permit = await self.lane.permit()
            self._waiting -= 1
            self.fill()
            self.window.on_start()
            outcome = await self._provider.call()
            if outcome is OK:
                self.window.on_success(self._clock.monotonic(), 0.25, 50)
            elif outcome.kind in {FailureKind.RATE_LIMIT, FailureKind.RATE_CONCURRENCY}:
                self.window.on_refusal(self._clock.monotonic())
            else:
                self.window.on_end()
            self.lane.done(permit, outcome=outcome)
            if not self._may_run() or len(self._runners) > self.window.size:
                return
            self._waiting += 1


class Simulation:
    """`run(seconds)` as often as wanted, with changes to `provider` in between; then `close()`."""

    def __init__(self, workers, limits=None, **provider):
        self.loop = JumpingLoop()
        self.clock = LoopClock(self.loop, 1)
        self.provider = Provider(self.clock, **provider)
        self.steps = SharedSteps(self.clock)
        self.loop.run_until_complete(self._hire(workers, limits or Limits()))

    async def _hire(self, count, limits):
        self.workers = [
            Worker(f"w{i}", limits, self.provider, self.steps, self.clock, count) for i in range(count)
        ]

    def run(self, seconds):
        self.loop.run_until_complete(self._run(seconds))
        return self

    async def _run(self, seconds):
        for worker in self.workers:
            worker.fill()
            await asyncio.sleep(0.11)
        await asyncio.sleep(seconds - 0.11 * len(self.workers))

    def rate(self, first, last):
        """Answered calls a second, from minute `first` to the end of minute `last`."""
        return sum(self.provider.answers[minute, "ok"] for minute in range(first, last + 1)) / 60 / (last + 1 - first)

    def share_refused(self, first=0, last=10**6):
        counts = Counter()
        for (minute, kind), count in self.provider.answers.items():
            if first <= minute <= last:
                counts[kind] += count
        return (counts["refused"] + counts["crowd"]) / counts.total()

    def close(self):
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.close()
