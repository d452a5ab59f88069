"""One lane of one process: its waiters, the slots leased for them, its share of concurrency.

Owns: PacedLane — the pump that turns waiting lines into slots, many with one lease, holds and pauses.
Used by workers/pacer.py only.
May not touch: Redis (pacer_source.py), the database, what a 429 means for a line (domain.retry).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from batch.clock import Clock
from batch.domain.gcra import Cost
from batch.domain.limits import Dimension, Limits, dimensions, start_utilisation
from batch.domain.outcome import Failure, Success
from batch.settings import GIVE_BACK_ABOVE_S
from workers.pacer_found import HURRY_S, Finder
from workers.pacer_share import Share
from workers.pacer_source import LanePaused, Pause, SlotSource
from workers.pacer_steps import Bucket, Steps

LATE_S = 1.0            # a slot missed by more is burnt: it belongs to a second that is over
LEASE_MAX = 20
GATHER_ABOVE_S, GATHER_S = 0.1, 0.25  # a lease that ends so far ahead lets waiters gather for so long
STRAY_WAIT_S = 1.0      # one 429 that asks for no more than this holds its line, not the lane
STRAYS_IN_A_ROW = 3
NO_ANSWER_S, LONGEST_HOLD_S = 0.1, 8.0  # held per refusal in a row, where no limit is known
USED_UP = "rate_used_up"  # a code that starts with rate_ is a wait, no failure of the provider


class Permit:
    """The right to send one call now. Hand it to Pacer.done() when the call ended or was not made."""

    __slots__ = ("cost", "is_done", "lane", "started")

    def __init__(self, lane: PacedLane, cost: Cost | None, started: float) -> None:
        self.lane = lane
        self.cost = cost
        self.started = started
        self.is_done = False


class _Waiter(NamedTuple):
    slot: asyncio.Future[float]  # its moment, on the monotonic clock
    cost: Cost


class PacedLane:
    """The pulse of one lane. `is_open`: nothing is known that could hold a call back."""

    def __init__(
        self, provider: str, key_id: str, model: str, steps: Steps | None, worker: str, clock: Clock,
        live_workers: Callable[[], int],
    ) -> None:  # fmt: skip
        scope = f"batchmill:pace:{{{provider}/{key_id}}}"
        self.key_name, self.model_name = f"{scope}:key", f"{scope}:model:{model}"
        self._clock, self._live_workers = clock, live_workers
        self.source = SlotSource(self.model_name, steps, worker, clock, live_workers)
        self.finder = Finder(self.source, clock, live_workers)
        self._telling: asyncio.Task[None] | None = None
        self._given: list[tuple[str, Limits]] = []
        self.limits: Limits | None = None
        self.paused: Pause | None = None
        self.is_open = False
        self.refunds = False
        self.in_use = 0
        self._dims: tuple[Dimension, ...] = ()
        self._share: Share | None = None
        self._share_key = self.model_name
        self._waiters: deque[_Waiter] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._held_until = 0.0  # monotonic
        self._in_a_row = 0
        self.calls, self.refused = 0, 0
        self._spent = {"request": 0.0, "tokens": 0.0, "input": 0.0, "output": 0.0}
        self._measured: tuple[float, dict[str, float]] = (clock.monotonic(), {})

    # limits

    def set_limits(self, limits: Limits, key_limits: Limits | None, counters: Mapping[str, Any]) -> None:
        """Meter these from now on. Arrival times in Redis stay: they are times, not counts."""
        self.limits = limits
        own = self.key_name if limits.scope == "key" else self.model_name
        self._given = [(own, limits)]
        if key_limits is not None and own != self.key_name:
            self._given.append((self.key_name, key_limits))
        self._counters = counters
        self.source.found_at = own
        self.finder.may_be_rate = not any(given.has_rate for _, given in self._given)
        self.refunds = limits.charge in {"reserve_refund", "actual"}
        self._set_meters()

    def _set_meters(self) -> None:
        """What is known, and what was found where nothing is."""
        own, found = self._given[0][0], self.finder.found
        buckets = [
            Bucket(key, dims, *start_utilisation(given)) for key, given in self._given if (dims := dimensions(given))
        ]
        if found.kind == "rate" and not buckets:
            buckets.append(Bucket(own, (Dimension("r", "request", found.value),), 1.0, 1.0))
        if buckets and all(bucket.key != self.key_name for bucket in buckets):
            buckets.append(Bucket(self.key_name, (), 1.0, 1.0))  # nothing metered: a pause of the key is seen there
        self.source.set_buckets(buckets, {self.key_name: "key", self.model_name: "model"}, self._counters)
        self._dims = tuple(dim for bucket in buckets for dim in bucket.dims)
        capped = [(given.concurrency, key) for key, given in self._given if given.concurrency is not None]
        if found.kind == "slots":
            capped.append((found.slots, own))
        cap, key = min(capped) if capped else (None, own)
        if cap is None:
            self._share = None
        elif self._share is None or self._share_key != key:
            ask = partial(self.source.ask_share, key)
            self._share = Share(cap, ask=ask, clock=self._clock, live_workers=self._live_workers)
        elif self._share.cap != cap:
            self._share.set_cap(cap)
        self._share_key = key
        self._look()

    @property
    def has_windows(self) -> bool:
        return any(dim.window_s for dim in self._dims)

    @property
    def rate(self) -> float | None:
        """Calls per second that the tightest request rate allows; None when only tokens are limited."""
        return min((dim.rate for dim in self._dims if dim.unit == "request"), default=None)

    @property
    def ahead_s(self) -> float:
        """Look-ahead: about 20 slots, within 1 to 4 seconds."""
        rate = self.rate or 10.0
        return min(4.0, max(1.0, LEASE_MAX / rate))

    @property
    def waiting_worth(self) -> int:
        if not self._dims:
            return 0
        return max(2, int((self.rate or LEASE_MAX) * self.ahead_s) + 1)

    def _look(self) -> None:
        """Keep the fast path's one question up to date."""
        self.is_open = (
            not self._dims
            and self._share is None
            and self.paused is None
            and self._held_until <= self._clock.monotonic()
        )

    # permits

    async def take(self, cost: Cost) -> Permit:
        """A slot of its own, waited for; the concurrency is held from the moment of the grant."""
        if self.is_open or self._has_room_now():
            self.in_use += 1
            return self._permit(cost)
        while True:
            self._raise_if_paused()
            waiter = _Waiter(asyncio.get_running_loop().create_future(), cost)
            self._waiters.append(waiter)
            if self._pump is None or self._pump.done():
                self._pump = asyncio.create_task(self._serve_waiters())
            try:
                slot = await waiter.slot
                ahead = slot - self._clock.monotonic()
                if ahead > 0.0005:
                    await self._clock.sleep_async(ahead)
            except asyncio.CancelledError:
                if waiter.slot.done() and not waiter.slot.cancelled() and waiter.slot.exception() is None:
                    self.release()
                raise
            now = self._clock.monotonic()
            if now - slot <= LATE_S and now >= self._held_until and self.paused is None:
                if self._dims:
                    for unit in self._spent:
                        self._spent[unit] += cost.of(unit)  # type: ignore[arg-type]
                return self._permit(cost)
            self.release()  # the slot is burnt: ask for another

    def _permit(self, cost: Cost) -> Permit:
        self.calls += 1
        return Permit(self, cost, self.finder.start())

    def _has_room_now(self) -> bool:
        """Only the calls in flight are counted, fewer than our share are, and nobody waits before us."""
        return (
            not self._dims
            and self._share is not None
            and not self._waiters
            and self.in_use < self._share.target
            and self.paused is None
            and self._held_until <= self._clock.monotonic()
        )

    def release(self) -> None:
        self.in_use -= 1
        if self._share is not None:
            self._share.release()

    async def _serve_waiters(self) -> None:
        while self._waiters:
            try:
                self._raise_if_paused()
                await self._serve()
            except LanePaused as pause:
                if pause.code != USED_UP:
                    self.pause(Pause(pause.until, pause.code, pause.reason))
                self._refuse_waiters(pause)
            except Exception as error:  # the wall of pacing: waiters learn of it, the next call starts a new pump
                self._refuse_waiters(error)
                raise

    async def _serve(self) -> None:
        """Grant what can be granted to the first waiters, or wait for what holds them back."""
        held = self._held_until - self._clock.monotonic()
        if held > 0:
            await self._clock.sleep_async(min(held, 1.0))
            return
        self._drop_cancelled()
        count = min(len(self._waiters), self._lease_size())
        if self._share is not None:
            free = await self._share.free(lambda: self.in_use, len(self._waiters))
            if free <= 0:
                return
            count = min(count, free)
        if count == 0:
            return
        if not self._dims:
            self._look()
            self._grant([0.0] * count)
            return
        costs = [self._waiters[i].cost for i in range(count)]
        grant = await self.source.lease(costs, self.ahead_s)
        unused = self._grant(grant.slots)
        if unused:
            await self.source.give_back(grant.slots, costs, unused)
        if len(grant.slots) < count:
            await self._sit_out(grant.wait_s)
        elif grant.slots[-1] > GATHER_ABOVE_S and len(self._waiters) < self._lease_size():
            # the next slot lies beyond: asking later asks for more at once, and delays nobody
            await self._clock.sleep_async(min(GATHER_S, grant.slots[-1] / 2))

    def _lease_size(self) -> int:
        rate = self.rate
        if rate is None:
            return LEASE_MAX
        return max(1, min(int(rate), max(LEASE_MAX, int(rate * 0.05))))

    async def _sit_out(self, wait_s: float) -> None:
        """Until half of the look-ahead is free again; a wait over a minute holds no line."""
        if wait_s > GIVE_BACK_ABOVE_S:
            raise LanePaused(self._clock.now() + wait_s, USED_UP, self._used_up())
        ahead = self.ahead_s
        await self._clock.sleep_async(min(5.0, max(0.002, wait_s - ahead / 2)))

    def _used_up(self) -> str:
        windows = [f"{dim.cap:,.0f} {'requests' if dim.unit == 'request' else 'tokens'} "
                   f"{'an hour' if dim.window_s == 3600 else 'a day'}" for dim in self._dims if dim.window_s]
        return f"the limit of {' and '.join(windows)} is used up" if windows else "its limit is used up"

    def _grant(self, slots: list[float]) -> int:
        """Give slots to waiters in order; returns how many at the end found no waiter."""
        now = self._clock.monotonic()
        for position, slot in enumerate(slots):
            while self._waiters and self._waiters[0].slot.done():
                self._waiters.popleft()
            if not self._waiters:
                return len(slots) - position
            self.in_use += 1
            self._waiters.popleft().slot.set_result(now + slot)
        return 0

    def _drop_cancelled(self) -> None:
        while self._waiters and self._waiters[0].slot.done():
            self._waiters.popleft()

    def _refuse_waiters(self, error: Exception) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.slot.done():
                waiter.slot.set_exception(
                    LanePaused(error.until, error.code, error.reason) if isinstance(error, LanePaused) else error
                )

    async def keep(self) -> None:
        """Once a second: keep the share of concurrency, settle what no lease carried, tell what was seen."""
        self._look()
        if self.finder.is_due(len(self._waiters)):
            await self._tell()
        if self._share is not None and (self.in_use or self._waiters or self._share.target):
            await self._share.renew(self.in_use, self.in_use + len(self._waiters))
        await self.source.flush()

    # what answers teach

    def end(self, permit: Permit, outcome: Success | Failure | None) -> None:
        """The call ended: its concurrency is free, and what it shows of the limit is noted."""
        self.release()
        if isinstance(outcome, Success):
            self._in_a_row = 0
        if self.finder.end(permit.started, outcome) and (self._telling is None or self._telling.done()):
            self._telling = asyncio.ensure_future(self._tell_soon())

    async def _tell_soon(self) -> None:
        if not self.finder.is_due(len(self._waiters)):
            await self._clock.sleep_async(HURRY_S)
        if self.finder.is_due(len(self._waiters)):
            await self._tell()

    async def _tell(self) -> None:
        held = self._held_until > self._clock.monotonic()
        if await self.finder.tell(not held and self.in_use + len(self._waiters) > self.finder.in_flight):
            self._set_meters()

    def note_refusal(self, wait_s: float | None) -> None:
        """A 429. A stray one that asks for little holds only its line; more of them, or a longer wait, all."""
        self.refused += 1
        self._in_a_row += 1
        wait = wait_s or 0.0
        hold = wait if wait > STRAY_WAIT_S or self._in_a_row >= STRAYS_IN_A_ROW else 0.0
        if self._in_a_row >= STRAYS_IN_A_ROW and self.finder.may_be_rate:
            hold = max(hold, min(LONGEST_HOLD_S, NO_ANSWER_S * self._in_a_row))
        self._hold(hold)
        if hold > 0 or self.finder.found.kind != "rate":
            self.source.note_refusal(hold)

    def note_overload(self) -> None:
        """A 503 or 529: several in a row hold the lane here, until the circuit opens or one is answered."""
        self._in_a_row += 1
        if self._in_a_row >= STRAYS_IN_A_ROW:
            self._hold(min(LONGEST_HOLD_S, NO_ANSWER_S * self._in_a_row))

    def _hold(self, seconds: float) -> None:
        if seconds > 0:
            self._held_until = max(self._held_until, self._clock.monotonic() + seconds)
            self._look()

    # pauses

    def pause(self, pause: Pause) -> None:
        self.paused = pause
        self.is_open = False
        self._refuse_waiters(LanePaused(*pause))

    def resume(self) -> None:
        self.paused = None
        self._held_until = 0.0
        self._look()

    def _raise_if_paused(self) -> None:
        if self.paused is not None:
            if self.paused.until > self._clock.now():
                raise LanePaused(*self.paused)
            self.resume()

    def facts(self) -> dict[str, Any]:
        return {
            "in_flight": self.in_use,
            "waiting": sum(not waiter.slot.done() for waiter in self._waiters),
            "found": self._show_found(),
            "aim": round(self.source.use, 4) if self._dims else None,
            "used": self._measure_use(),
            "calls": self.calls,
            "refused": self.refused,
            "local": self.source.is_alone,
            "held_s": round(max(0.0, self._held_until - self._clock.monotonic()), 1),
        }

    def _show_found(self) -> dict[str, float] | None:
        found = self.finder.found
        if not found.kind:
            return None
        return {"requests_per_second": round(found.value, 2)} if found.kind == "rate" else {"concurrency": found.slots}

    def _measure_use(self) -> dict[str, float]:
        """By dimension, the share of each rate that this process has used since it was last asked."""
        now, spent = self._clock.monotonic(), self._spent
        (since, before), self._measured = self._measured, (now, dict(spent))
        seconds = max(1.0, now - since)
        return {d.name: round((spent[d.unit] - before.get(d.unit, 0.0)) / seconds / d.rate, 4) for d in self._dims}

    async def close(self) -> None:
        for task in (self._pump, self._telling):
            if task is not None:
                task.cancel()
        if self._share is not None and not self.in_use:
            await self.source.ask_share(self._share_key, self._share.cap, 0, 0)
