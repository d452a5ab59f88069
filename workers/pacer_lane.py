"""One lane of one process: its permits, its waiters, the slots leased for them, its share of concurrency.

Owns: PacedLane — one permit per HTTP call; the pump that turns waiting lines into slots, many with one
lease; holds and pauses. Made by workers/pacer.py.
May not touch: Redis (pacer_source.py), the database, what a 429 means for a line (domain.retry).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from batch.domain.found_limit import Found
from batch.domain.gcra import Cost
from batch.domain.limits import Dimension, Limits, dimensions, start_utilisation
from batch.domain.outcome import Failure, Success
from batch.providers.headers import RateReading
from batch.settings import GIVE_BACK_ABOVE_S, PROBE_EVERY_S
from workers.pacer_found import HURRY_S, OVERLOADS, REFUSALS, Finder
from workers.pacer_share import Share
from workers.pacer_source import SLOTS_AHEAD, LanePaused, Pause, SlotSource
from workers.pacer_steps import Bucket

LATE_S = 1.0            # a slot missed by more is burnt: it belongs to a second that is over
GATHER_ABOVE_S, GATHER_S = 0.1, 0.25  # a lease that ends so far ahead lets waiters gather for so long
STRAY_WAIT_S = 1.0      # one 429 that asks for no more than this holds its line, not the lane
STRAYS_IN_A_ROW = 3
NO_ANSWER_S, LONGEST_HOLD_S = 0.1, 8.0  # held per refusal in a row, where no limit is known
USED_UP = "rate_used_up"  # a code that starts with rate_ is a wait, no failure of the provider


class Permit:
    """The right to send one call now. Hand it to done() when the call ended or was not made."""

    __slots__ = ("cost", "is_done", "started")

    def __init__(self, cost: Cost, started: float) -> None:
        self.cost = cost
        self.started = started
        self.is_done = False


class _Waiter(NamedTuple):
    slot: asyncio.Future[float]  # its moment, on the monotonic clock
    cost: Cost


class PacedLane:
    """The pulse of one lane. `limits` are those in force: learn() replaces them, and `scope` says whether they hold
    for this model or for the whole key."""

    def __init__(
        self, source: SlotSource, key_name: str, limits: Limits, counters: Mapping[str, Any], found: Found
    ) -> None:
        self.limits = limits
        self.key_name = key_name
        self.source = source
        self.finder = Finder(source, found)
        self.paused: Pause | None = None
        self.in_use = 0
        self._clock = source.clock
        self._counters = counters
        self._share: Share | None = None
        self._waiters: deque[_Waiter] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._held_until = 0.0  # monotonic
        self._in_a_row = 0
        self._calls, self._refused = 0, 0
        self._set_meters()

    # limits

    def learn(self, reading: RateReading) -> dict[str, float]:
        """Learn from a response's headers: `limit` may raise or lower a limit, `remaining` only lowers.

        Returns the limits that changed, for `lanes.learned["limits"]`.
        """
        if not reading.windows:
            return {}
        before, stated = self.limits, reading.limits
        self.limits = before.with_learned(stated)
        if self.limits is not before:
            self._set_meters()
        self.source.lower(reading.remaining)
        return {name: value for name, value in stated.items() if getattr(self.limits, name) != getattr(before, name)}

    def _set_meters(self) -> None:
        """What is known, and what was found where nothing is."""
        limits, source, found = self.limits, self.source, self.finder.found
        own = self.key_name if limits.scope == "key" else source.name
        self.finder.key = own
        self.finder.may_be_rate = not limits.has_rate
        buckets = []
        if dims := dimensions(limits):
            buckets.append(Bucket(own, dims, *start_utilisation(limits)))
        elif found.kind == "rate":
            buckets.append(Bucket(own, (Dimension("r", "request", found.value),), 1.0, 1.0))
        if buckets and own != self.key_name:
            buckets.append(Bucket(self.key_name, (), 1.0, 1.0))  # nothing metered: a pause of the key is seen there
        source.set_meters(buckets, limits.scope, self._counters)
        caps = [limits.concurrency, found.slots if found.kind == "slots" else None]
        cap = min((cap for cap in caps if cap is not None), default=None)
        if cap is None:
            self._share = None
        elif self._share is None or self._share.key != own:
            self._share = Share(cap, own, source)
        elif self._share.cap != cap:
            self._share.set_cap(cap)

    @property
    def waiting_worth(self) -> int:
        """How many lines should wait for a permit so that no slot is lost: one look-ahead of the rate; 0: any."""
        source = self.source
        return max(2, int((source.rate or SLOTS_AHEAD) * source.ahead_s) + 1) if source.dims else 0

    # permits

    async def permit(self, est_tokens: int = 0, est_output: int = 0) -> Permit:
        """Wait for the lane's next slot. `est_tokens` is the total charge, `est_output` its output part.

        Take it just before the send, and give it to done() in any case: the concurrency is held from the moment of
        the grant. Raises LanePaused when the lane is paused, or when the next slot is more than a minute away.
        """
        cost = Cost(est_tokens, est_output)
        if self._is_free():
            self.in_use += 1
        else:
            await self._wait_for_slot(cost)
        self._calls += 1
        return Permit(cost, self.finder.start())

    def done(
        self, permit: Permit, *, actual_tokens: int | None = None, actual_output: int = 0,
        outcome: Success | Failure | None = None,
    ) -> None:
        """The call ended: free its concurrency, settle its tokens, learn from a 429. Twice is harmless."""
        if permit.is_done:
            return
        permit.is_done = True
        self._release()
        if self.finder.end(permit.started, outcome) and (self._telling is None or self._telling.done()):
            self._telling = asyncio.ensure_future(self._tell_soon())
        if isinstance(outcome, Success):
            self._in_a_row = 0
        elif outcome is not None:
            if outcome.kind in OVERLOADS:
                self._note_overload()
            elif outcome.kind in REFUSALS:
                self._note_refusal(outcome.retry_after_s or 0.0)
            if not outcome.sent:
                actual_tokens, actual_output = 0, 0
        if actual_tokens is not None and self.limits.charge in {"reserve_refund", "actual"}:
            self.source.settle(Cost(actual_tokens - permit.cost.tokens, actual_output - permit.cost.output))

    async def _wait_for_slot(self, cost: Cost) -> None:
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
                    self._release()
                raise
            now = self._clock.monotonic()
            if now - slot <= LATE_S and now >= self._held_until and self.paused is None:
                self.source.spend(cost)
                return
            self._release()  # the slot is burnt: ask for another

    def _is_free(self) -> bool:
        """Nothing paces a call now: at most the calls in flight are counted, and fewer than our share are."""
        share = self._share
        return (
            not self.source.dims
            and self.paused is None
            and (not self._held_until or self._held_until <= self._clock.monotonic())
            and (share is None or (not self._waiters and self.in_use < share.target))
        )

    def _release(self) -> None:
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
            count = min(count, free)
        if count <= 0:
            return
        if not self.source.dims:
            self._grant([0.0] * count)
            return
        costs = [self._waiters[i].cost for i in range(count)]
        grant = await self.source.lease(costs)
        unused = self._grant(grant.slots)
        if unused:
            await self.source.give_back(grant.slots, costs, unused)
        if len(grant.slots) < count:
            await self._sit_out(grant.wait_s)
        elif grant.slots[-1] > GATHER_ABOVE_S and len(self._waiters) < self._lease_size():
            # the next slot lies beyond: asking later asks for more at once, and delays nobody
            await self._clock.sleep_async(min(GATHER_S, grant.slots[-1] / 2))

    def _lease_size(self) -> int:
        rate = self.source.rate
        if rate is None:
            return SLOTS_AHEAD
        return max(1, min(int(rate), max(SLOTS_AHEAD, int(rate * 0.05))))

    async def _sit_out(self, wait_s: float) -> None:
        """Until half of the look-ahead is free again; a wait over a minute holds no line."""
        if wait_s > GIVE_BACK_ABOVE_S:
            raise LanePaused(self._clock.now() + wait_s, USED_UP, self.source.used_up)
        await self._clock.sleep_async(min(5.0, max(0.002, wait_s - self.source.ahead_s / 2)))

    def _grant(self, slots: list[float]) -> int:
        """Give slots to waiters in order; returns how many at the end found no waiter."""
        now = self._clock.monotonic()
        for position, slot in enumerate(slots):
            self._drop_cancelled()
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
        await self._tell_if_due()
        if self._share is not None and (self.in_use or self._waiters or self._share.target):
            await self._share.renew(self.in_use, self.in_use + len(self._waiters))
        await self.source.flush()

    # what answers teach

    async def _tell_soon(self) -> None:
        if not self.finder.is_due(len(self._waiters)):
            await self._clock.sleep_async(HURRY_S)
        await self._tell_if_due()

    async def _tell_if_due(self) -> None:
        waiting = len(self._waiters)
        if not self.finder.is_due(waiting):
            return
        is_held = self._held_until > self._clock.monotonic()
        if await self.finder.tell(not is_held and self.in_use + waiting > self.finder.in_flight):
            self._set_meters()

    def _note_refusal(self, wait_s: float) -> None:
        """A 429. A stray one that asks for little holds only its line; more of them, or a longer wait, all."""
        self._refused += 1
        self._in_a_row += 1
        hold = wait_s if wait_s > STRAY_WAIT_S or self._in_a_row >= STRAYS_IN_A_ROW else 0.0
        if self._in_a_row >= STRAYS_IN_A_ROW and self.finder.may_be_rate:
            hold = max(hold, min(LONGEST_HOLD_S, NO_ANSWER_S * self._in_a_row))
        self._hold(hold)
        if hold > 0 or self.finder.found.kind != "rate":
            self.source.note_refusal(hold)

    def _note_overload(self) -> None:
        """A 503 or 529: several in a row hold the lane here, until the circuit opens or one is answered."""
        self._in_a_row += 1
        if self._in_a_row >= STRAYS_IN_A_ROW:
            self._hold(min(LONGEST_HOLD_S, NO_ANSWER_S * self._in_a_row))

    def _hold(self, seconds: float) -> None:
        if seconds > 0:
            self._held_until = max(self._held_until, self._clock.monotonic() + seconds)

    # pauses

    def pause(self, pause: Pause) -> None:
        """No permit before its end; lines that wait for one learn why."""
        self.paused = pause
        self._refuse_waiters(LanePaused(*pause))

    def resume(self) -> None:
        """Not paused any more, here."""
        self.paused, self._held_until = None, 0.0

    async def copy_pause(self, pause: Pause, *, whole_key: bool) -> None:
        """To Redis, for the other workers' next lease."""
        key = self.key_name if whole_key else self.source.name
        left_s = pause.until - self._clock.now()
        await self.source.ask(self.source.steps.pause, key, left_s, pause.code, pause.reason)

    async def lift_copies(self) -> None:
        """The database knows of no pause any more: nor may Redis."""
        for key in (self.source.name, self.key_name):
            await self.source.ask(self.source.steps.resume, key)

    async def may_probe(self) -> bool:
        """After a pause one worker tries the lane, the others wait for what it finds; each does without Redis."""
        source = self.source
        return await source.ask(source.steps.claim_probe, source.name, source.worker, PROBE_EVERY_S) is not False

    def _raise_if_paused(self) -> None:
        if self.paused is not None:
            if self.paused.until > self._clock.now():
                raise LanePaused(*self.paused)
            self.resume()

    def facts(self) -> dict[str, Any]:
        """For `workers.facts`: in flight, waiting, share in use, calls and 429s since the start."""
        found, shown = self.finder.found, None
        if found.kind:
            is_rate = found.kind == "rate"
            shown = {"requests_per_second": round(found.value, 2)} if is_rate else {"concurrency": found.slots}
        return {
            "in_flight": self.in_use,
            "waiting": sum(not waiter.slot.done() for waiter in self._waiters),
            "found": shown,
            "aim": round(self.source.use, 4) if self.source.dims else None,
            "used": self.source.measure_use(),
            "calls": self._calls,
            "refused": self._refused,
            "local": self.source.is_alone,
            "held_s": round(max(0.0, self._held_until - self._clock.monotonic()), 1),
        }

    async def close(self) -> None:
        for task in (self._pump, self._telling):
            if task is not None:
                task.cancel()
        if self._share is not None and not self.in_use:
            await self._share.renew(0, 0)
