"""Where one lane's slots come from: Redis, many at a time, or a safe local share while Redis is away.

Owns: SlotSource — the meters in force, leasing and returning slots, settling tokens, re-seeding and saving
the counters of long windows, noticing that Redis went and came back. Used by workers/pacer_*.py only.
May not touch: waiters, Lua (pacer_steps.py), the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from redis.exceptions import RedisError

from batch.clock import Clock
from batch.domain.gcra import Cost, Grant, Meter
from batch.domain.limits import Dimension, request_rate
from batch.telemetry import emit
from workers.pacer_steps import Bucket, Steps

T = TypeVar("T")

LOCAL_SHARE = 0.5      # of each limit, divided by the live workers, while Redis is away
RETURN_AHEAD_S = 0.05  # an unused slot nearer than this is burnt
AWAY_S = 1.0           # between two looks whether Redis is back
LOWER_EVERY_S = 1.0
SLOTS_AHEAD = 20       # of a look-ahead
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
    """`name` is the lane's bucket in Redis; set_meters() says which buckets are in force."""

    def __init__(
        self, name: str, steps: Steps, worker: str, clock: Clock, live_workers: Callable[[], int]
    ) -> None:
        self.name = name
        self.steps = steps
        self.worker = worker
        self.clock = clock
        self.use = 1.0
        self.dims: tuple[Dimension, ...] = ()
        self._live_workers = live_workers
        self._buckets: Sequence[Bucket] = ()
        self._scope = ""
        self._counters: Mapping[str, Any] = {}
        self._owed = Cost()
        self._away_until: float | None = None
        self._meter, self._last_at_us = Meter(), 0
        self._sent_locally: dict[str, float] = {}
        self._lowered_at = 0.0
        self._spent: dict[str, float] = {}
        self._measured_at = clock.monotonic()
        self._tasks: set[asyncio.Task[Any]] = set()

    # meters

    def set_meters(self, buckets: Sequence[Bucket], scope: str, counters: Mapping[str, Any]) -> None:
        """Meter these from now on: the first bucket's dimensions; of another only a pause is seen. `scope` names the
        first one's place in `lanes.counters`. Arrival times in Redis stay: they are times, not counts."""
        self._buckets, self._scope, self._counters = buckets, scope, counters
        self.dims = buckets[0].dims if buckets else ()
        self.use = buckets[0].use if buckets else 1.0

    @property
    def rate(self) -> float | None:
        """Calls per second that the meters in force allow; None when only tokens are limited."""
        return request_rate(self.dims)

    @property
    def ahead_s(self) -> float:
        """Look-ahead: about 20 slots, within 1 to 4 seconds."""
        return min(4.0, max(1.0, SLOTS_AHEAD / (self.rate or 10.0)))

    @property
    def used_up(self) -> str:
        """The long windows, as the reason of a long wait."""
        windows = [f"{dim.cap:,.0f} {'requests' if dim.unit == 'request' else 'tokens'} "
                   f"{'an hour' if dim.window_s == 3600 else 'a day'}" for dim in self.dims if dim.window_s]
        return f"the limit of {' and '.join(windows)} is used up" if windows else "its limit is used up"

    def spend(self, cost: Cost) -> None:
        """A slot was used."""
        for dim in self.dims:
            self._spent[dim.name] = self._spent.get(dim.name, 0.0) + cost.of(dim.unit)

    def measure_use(self) -> dict[str, float]:
        """By dimension, the share of each rate that this process has used since it was last asked."""
        seconds = max(1.0, self.clock.monotonic() - self._measured_at)
        spent, self._spent, self._measured_at = self._spent, {}, self.clock.monotonic()
        return {dim.name: round(spent.get(dim.name, 0.0) / seconds / dim.rate, 4) for dim in self.dims}

    # Redis, there or away

    @property
    def is_alone(self) -> bool:
        """True while this process paces at its local share."""
        return self._away_until is not None

    @property
    def local_share(self) -> float:
        """Of each limit, while Redis is away."""
        return LOCAL_SHARE / self._live_workers()

    async def ask(self, step: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T | None:
        """One of `steps` that may be lost: None while Redis is away, which is no error here."""
        if not self._may_ask():
            return None
        try:
            answer = await step(*args, **kwargs)
        except _AWAY as error:
            self._go_alone(error)
            return None
        if not self.dims:
            self._away_until = None  # no lease will notice that Redis is back
        return answer

    async def lease(self, costs: list[Cost]) -> Grant:
        """Slots for the first of `costs`. Raises LanePaused where somebody paused the bucket."""
        if not self._may_ask():
            return self._lease_locally(costs)
        owed, self._owed = self._owed, Cost()
        try:
            if self._away_until is not None:
                await self._come_back()
            settled = owed if any(owed) else None
            lease = await self.steps.lease(self._buckets, costs, ahead_s=self.ahead_s, settled=settled)
            if lease.fresh:
                await self._seed()
        except _AWAY as error:
            self.settle(owed)
            self._go_alone(error)
            return self._lease_locally(costs)
        if lease.paused is not None:
            self.settle(owed)
            raise LanePaused(*lease.paused)
        self.use, self._last_at_us = lease.use, lease.at_us
        return Grant(lease.slots, lease.wait_s)

    async def give_back(self, slots: list[float], costs: list[Cost], unused: int) -> None:
        """Return the tail of the last lease, while its slots are far enough ahead."""
        first = len(slots) - unused
        if not self._last_at_us or slots[first] < RETURN_AHEAD_S:
            return
        at = self._last_at_us
        before = at + int(slots[first - 1] * 1e6 + 0.5) if first else at
        last = at + int(slots[-1] * 1e6 + 0.5)
        returned = costs[first : len(slots)]
        await self.ask(self.steps.give_back, self._buckets, returned, last_us=last, before_us=before)

    def settle(self, difference: Cost) -> None:
        """Tokens really used, less those reserved: carried by the next lease, or by flush()."""
        self._owed = Cost(self._owed.tokens + difference.tokens, self._owed.output + difference.output)

    async def flush(self) -> None:
        if any(self._owed) and self.dims and self._may_ask():
            owed, self._owed = self._owed, Cost()
            await self.ask(self.steps.lease, self._buckets, [], ahead_s=0.0, settled=owed)

    def note_refusal(self, hold_s: float) -> None:
        """Count a 429 in Redis, in the background; with `hold_s`, for all workers."""
        if self.dims:
            self._background(self.ask(self.steps.refused, self._buckets[:1], hold_s))

    def lower(self, remaining: Mapping[str, float]) -> None:
        """Headers say what remains: believed where it is less than the look-ahead would spend."""
        now = self.clock.monotonic()
        if now - self._lowered_at < LOWER_EVERY_S:
            return
        believed = {
            dim.name: remaining[field]
            for dim in self.dims
            if (field := _FIELD_OF[dim.name]) in remaining
            and (dim.window_s or remaining[field] < max(1.0, dim.rate * dim.tolerance_s))
        }
        if believed:
            self._lowered_at = now
            self._background(self.ask(self.steps.lower, self._buckets[0], believed, self.use))

    async def read_counters(self) -> dict[str, Any] | None:
        """Hour and day counters for `lanes.counters`; None when there are none or Redis is away."""
        if not any(dim.window_s for dim in self.dims):
            return None
        windows = await self.ask(self.steps.read_windows, self._buckets[0])
        if windows is None:
            return None
        self._counters = {**self._counters, self._scope: windows}
        return {self._scope: windows}

    def _may_ask(self) -> bool:
        return self._away_until is None or self.clock.monotonic() >= self._away_until

    def _go_alone(self, error: Exception) -> None:
        if self._away_until is None:
            emit("pacing_alone", lane=self.name, error=f"{type(error).__name__}: {error}"[:200])
        self._away_until = self.clock.monotonic() + AWAY_S

    def _lease_locally(self, costs: list[Cost]) -> Grant:
        share = self.local_share
        dims = [replace(dim, cap=dim.cap * share, tolerance_s=0.0) for dim in self.dims]
        self._last_at_us = 0
        grant = self._meter.lease(self.clock.monotonic(), costs, dims, use=share, ahead_s=self.ahead_s)
        for dim in self.dims:
            if dim.window_s:
                used = sum(cost.of(dim.unit) for cost in costs[: len(grant.slots)])
                self._sent_locally[dim.name] = self._sent_locally.get(dim.name, 0.0) + used
        return grant

    async def _come_back(self) -> None:
        """Redis answers again: its long windows learn what was sent without it."""
        await self._seed()
        for bucket in self._buckets[:1]:
            await self.steps.count(bucket, self._sent_locally)
        emit("pacing_shared", lane=self.name)
        self._sent_locally = {}
        self._meter = Meter()
        self._away_until = None

    async def _seed(self) -> None:
        seeds = self._counters.get(self._scope)
        for bucket in self._buckets[:1]:
            if isinstance(seeds, dict):
                await self.steps.seed(bucket, seeds)

    def _background(self, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_FIELD_OF = {
    "r": "requests_per_minute", "t": "tokens_per_minute", "i": "input_tokens_per_minute",
    "o": "output_tokens_per_minute", "rh": "requests_per_hour", "rd": "requests_per_day", "td": "tokens_per_day",
}  # fmt: skip
