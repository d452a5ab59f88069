"""Where one lane's slots come from: Redis, many at a time, or a safe local share while Redis is away.

Owns: SlotSource — leasing and returning slots, settling tokens, re-seeding and saving the counters of
long windows, noticing that Redis went and came back. Used by workers/pacer_lane.py only.
May not touch: waiters, Lua (pacer_steps.py), the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from redis.exceptions import RedisError

from batch.clock import Clock
from batch.domain.found_limit import Found, Seen
from batch.domain.gcra import Cost, Grant, Meter
from batch.domain.limits import Dimension
from batch.telemetry import emit
from workers.pacer_share import LOCAL_SHARE
from workers.pacer_steps import Bucket, Steps

T = TypeVar("T")

RETURN_AHEAD_S = 0.05  # an unused slot nearer than this is burnt
AWAY_S = 1.0           # between two looks whether Redis is back
LOWER_EVERY_S = 1.0
_AWAY = (RedisError, OSError, TimeoutError)


class Pause(NamedTuple):
    until: float  # Unix seconds
    code: str
    reason: str


class LanePaused(Exception):
    """The lane gives no permit before `until` (Unix seconds). Give the line back; nothing was spent."""

    def __init__(self, until: float, code: str, reason: str) -> None:
        super().__init__(reason)
        self.until = until
        self.code = code
        self.reason = reason


class SlotSource:
    """`names`: the bucket keys as `lanes.counters` calls them, "model" and "key"."""

    def __init__(
        self, name: str, steps: Steps | None, worker: str, clock: Clock, live_workers: Callable[[], int]
    ) -> None:
        self._name = name
        self._steps = steps
        self._worker = worker
        self._clock = clock
        self._live_workers = live_workers
        self.use = 1.0
        self.found_at = name  # the bucket beside which a limit is looked for
        self._buckets: Sequence[Bucket] = ()
        self._dims: tuple[Dimension, ...] = ()
        self._names: Mapping[str, str] = {}
        self._counters: Mapping[str, Any] = {}
        self._owed = Cost()
        self._away_until: float | None = None
        self._meter, self._last_at_us = Meter(), 0
        self._sent_locally: dict[str, float] = {}
        self._lowered_at = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()

    def set_buckets(
        self, buckets: Sequence[Bucket], names: Mapping[str, str], counters: Mapping[str, Any]
    ) -> None:
        """Meter these from now on. Arrival times in Redis stay: they are times, not counts."""
        self._buckets, self._names, self._counters = buckets, names, counters
        self._dims = tuple(dim for bucket in buckets for dim in bucket.dims)
        self.use = min((bucket.use for bucket in buckets), default=1.0)

    @property
    def is_alone(self) -> bool:
        """True while this process paces at its local share."""
        return self._away_until is not None

    async def lease(self, costs: list[Cost], ahead_s: float) -> Grant:
        """Slots for the first of `costs`. Raises LanePaused where somebody paused the bucket."""
        if self._steps is None or not self._may_ask():
            return self._lease_locally(costs, ahead_s)
        owed, self._owed = self._owed, Cost()
        try:
            if self._away_until is not None:
                await self._come_back(self._steps)
            lease = await self._steps.lease(
                self._buckets, costs, ahead_s=ahead_s, settled=owed if any(owed) else None
            )
            if lease.fresh and self._counters:
                await self._seed(self._steps)
        except _AWAY as error:
            self.settle(owed)
            self._go_alone(error)
            return self._lease_locally(costs, ahead_s)
        if lease.paused is not None:
            self.settle(owed)
            raise LanePaused(*lease.paused)
        self.use, self._last_at_us = lease.use, lease.at_us
        return Grant(lease.slots, lease.wait_s)

    async def give_back(self, slots: list[float], costs: list[Cost], unused: int) -> None:
        """Return the tail of the last lease, while its slots are far enough ahead."""
        first = len(slots) - unused
        if not self._last_at_us or self._steps is None or slots[first] < RETURN_AHEAD_S:
            return
        at = self._last_at_us
        before = at + int(slots[first - 1] * 1e6 + 0.5) if first else at
        last = at + int(slots[-1] * 1e6 + 0.5)
        await self.attempt(
            self._steps.give_back(self._buckets, costs[first : len(slots)], last_us=last, before_us=before)
        )

    def settle(self, difference: Cost) -> None:
        """Tokens really used, less those reserved: carried by the next lease, or by flush()."""
        self._owed = Cost(self._owed.tokens + difference.tokens, self._owed.output + difference.output)

    async def flush(self) -> None:
        if any(self._owed) and self._buckets and self._steps is not None and self._may_ask():
            owed, self._owed = self._owed, Cost()
            await self.attempt(self._steps.lease(self._buckets, [], ahead_s=0.0, settled=owed))

    def note_refusal(self, hold_s: float) -> None:
        """Count a 429 in Redis, in the background; with `hold_s`, for all workers."""
        if self._buckets and self._steps is not None and self._may_ask():
            metered = [bucket for bucket in self._buckets if bucket.dims]
            self._background(self.attempt(self._steps.refused(metered, hold_s)))

    def lower(self, remaining: Mapping[str, float]) -> None:
        """Headers say what remains: believed where it is less than the look-ahead would spend."""
        now = self._clock.monotonic()
        if self._steps is None or now - self._lowered_at < LOWER_EVERY_S or not self._may_ask():
            return
        for bucket in self._buckets:
            believed = {
                dim.name: remaining[field]
                for dim in bucket.dims
                if (field := _FIELD_OF[dim.name]) in remaining
                and (dim.window_s or remaining[field] < max(1.0, dim.rate * dim.tolerance_s))
            }
            if believed:
                self._lowered_at = now
                self._background(self.attempt(self._steps.lower(bucket, believed, self.use)))

    async def ask_share(self, key: str, cap: int, in_use: int, want: int) -> int | None:
        """This worker's part of a concurrency limit; None while Redis is away."""
        if self._steps is None or not self._may_ask():
            return None
        got = await self.attempt(self._steps.share(key, self._worker, cap=cap, in_use=in_use, want=want))
        if got is not None and not self._dims:
            self._away_until = None  # no lease will notice that Redis is back
        return got

    async def tell(self, seen: Seen) -> tuple[float, Seen, Found] | None:
        """Add to what all workers of the lane saw; None while Redis is away."""
        if self._steps is None or not self._may_ask():
            return None
        told = await self.attempt(self._steps.tell(self.found_at, seen))
        if told is not None and not self._dims:
            self._away_until = None  # no lease will notice that Redis is back
        return told

    async def adopt(self, before: Found, after: Found, used: Seen) -> bool | None:
        return await self.attempt(self._steps.adopt(self.found_at, before, after, used)) if self._steps else None

    async def claim_probe(self, seconds: float) -> bool:
        """Whether this worker tries the lane after a pause; each does while Redis is away."""
        if self._steps is None or not self._may_ask():
            return True
        return await self.attempt(self._steps.claim_probe(self._name, self._worker, seconds)) is not False

    async def copy_pause(self, key: str, seconds: float, code: str, reason: str) -> None:
        if self._steps is not None:
            await self.attempt(self._steps.pause(key, seconds, code, reason))

    async def lift_pause(self, key: str) -> None:
        if self._steps is not None:
            await self.attempt(self._steps.resume(key))

    async def read_counters(self) -> dict[str, Any] | None:
        """Hour and day counters by bucket name; None while Redis is away."""
        if self._steps is None or not self._may_ask():
            return None
        try:
            found = {self._names[b.key]: await self._steps.read_windows(b) for b in self._buckets if b.dims}
        except _AWAY:
            return None
        self._counters = {**self._counters, **found}
        return found

    async def attempt(self, step: Awaitable[T]) -> T | None:
        """A step that may be lost: Redis away is no error here."""
        try:
            return await step
        except _AWAY as error:
            self._go_alone(error)
            return None

    def _may_ask(self) -> bool:
        return self._away_until is None or self._clock.monotonic() >= self._away_until

    def _go_alone(self, error: Exception) -> None:
        if self._away_until is None:
            emit("pacing_alone", lane=self._name, error=f"{type(error).__name__}: {error}"[:200])
        self._away_until = self._clock.monotonic() + AWAY_S

    def _lease_locally(self, costs: list[Cost], ahead_s: float) -> Grant:
        share = LOCAL_SHARE / max(1, self._live_workers())
        dims = [replace(dim, cap=dim.cap * share, tolerance_s=0.0) for dim in self._dims]
        self._last_at_us = 0
        grant = self._meter.lease(self._clock.monotonic(), costs, dims, use=share, ahead_s=ahead_s)
        for dim in self._dims:
            if dim.window_s:
                used = sum(cost.of(dim.unit) for cost in costs[: len(grant.slots)])
                self._sent_locally[dim.name] = self._sent_locally.get(dim.name, 0.0) + used
        return grant

    async def _come_back(self, steps: Steps) -> None:
        """Redis answers again: its long windows learn what was sent without it."""
        await self._seed(steps)
        for bucket in self._buckets:
            await steps.count(bucket, self._sent_locally)
        emit("pacing_shared", lane=self._name)
        self._sent_locally = {}
        self._meter = Meter()
        self._away_until = None

    async def _seed(self, steps: Steps) -> None:
        for bucket in self._buckets:
            seeds = self._counters.get(self._names[bucket.key])
            if isinstance(seeds, dict):
                await steps.seed(bucket, seeds)

    def _background(self, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_FIELD_OF = {
    "r": "requests_per_minute", "t": "tokens_per_minute", "i": "input_tokens_per_minute",
    "o": "output_tokens_per_minute", "rh": "requests_per_hour", "rd": "requests_per_day", "td": "tokens_per_day",
}  # fmt: skip
