"""This process's part in finding a limit that nobody stated.

Owns: Finder — counts the lane's calls, tells Redis about once a second what was seen, and takes over what
all workers have found together; one of them at a time makes the step (domain.found_limit). While Redis is
away it makes the steps by itself. Used by workers/pacer_lane.py only. May not touch: waiters, slots.
"""

from __future__ import annotations

from batch.domain.found_limit import Found, Seen, grace_s, step
from batch.domain.outcome import Failure, FailureKind, Success
from workers.pacer_source import SlotSource

STEP_EVERY_S = 1.0
HURRY_S = 0.15  # between two tellings of refusals
OVERLOADS = frozenset({FailureKind.OVERLOADED, FailureKind.UNAVAILABLE})
_CROWDED = OVERLOADS | {FailureKind.RATE_CONCURRENCY}
REFUSALS = _CROWDED | {FailureKind.RATE_LIMIT, FailureKind.RATE_DYNAMIC}


class Finder:
    """`found` is what holds here and now, `key` the bucket that it limits. Times are monotonic, but for those of
    the shared state."""

    def __init__(self, source: SlotSource, found: Found) -> None:
        self.found = found
        self.key = ""
        self.may_be_rate = True
        self._source = source
        self._clock = clock = source.clock
        self._told_at, self._is_telling = clock.monotonic(), False
        self._changed_at = self._told_at
        self.in_flight = 0
        self._fresh_from = 0.0
        self._clear()

    def _clear(self) -> None:
        self._started, self._refused, self._crowded = 0, 0, 0
        self._busy_s, self._asked_s = 0.0, 0.0

    def start(self) -> float:
        """A call goes out; give the returned moment to end()."""
        now = self._clock.monotonic()
        self._integrate(now)
        self.in_flight += 1
        self._started += 1
        return now

    def end(self, started: float, outcome: Success | Failure | None) -> bool:
        """The call ended; True when it was refused by a limit that may be looked for."""
        now = self._clock.monotonic()
        self._integrate(now)
        self.in_flight -= 1
        kinds = REFUSALS if self.may_be_rate else _CROWDED
        if not isinstance(outcome, Failure) or outcome.kind not in kinds:
            return False
        self._busy_s -= now - started
        if started < self._fresh_from:  # it tells of an incident that a cut has answered
            self._started = max(0, self._started - 1)
            return False
        self._refused += 1
        self._crowded += outcome.kind in _CROWDED
        self._asked_s = max(self._asked_s, outcome.retry_after_s or 0.0)
        return True

    def _integrate(self, now: float) -> None:
        self._busy_s += self.in_flight * (now - self._changed_at)
        self._changed_at = now

    def is_due(self, waiting: int) -> bool:
        """Once a second while calls are made or wait; soon after a refusal."""
        if self._is_telling:
            return False
        waited = self._clock.monotonic() - self._told_at
        is_looking = self.may_be_rate or self.found.at > 0
        return (is_looking and waited >= STEP_EVERY_S and (self._started or self.in_flight or waiting) > 0) or (
            self._refused > 0 and waited >= HURRY_S
        )

    async def tell(self, is_pressing: bool) -> bool:
        """Tell what was seen here, learn what all have found; True when the limit is another now."""
        now, before = self._clock.monotonic(), self.found
        self._integrate(now)
        self._told_at, self._is_telling = now, True
        pressing = float(is_pressing or (not before.kind and self._started > 0))
        seen = Seen(self._started, self._refused, self._crowded, self._busy_s, pressing, self._asked_s)
        self._clear()
        try:
            await self._meet(seen)
        finally:
            self._is_telling = False
            if self.found.cut_at != before.cut_at:
                self._fresh_from = self._clock.monotonic() + grace_s(self.found)
        return self.found.value != before.value

    async def _meet(self, seen: Seen) -> None:
        source, before = self._source, self.found
        told = await source.ask(source.steps.tell, self.key, seen)
        if told is None:
            share = source.local_share
            self.found = step(before, seen, self._clock.now(), may_be_rate=self.may_be_rate, share=share)
            return
        at, total, shared = told
        is_lost = not shared.at and bool(before.kind)
        self.found = before if is_lost else shared
        if total.refused or at - shared.at >= STEP_EVERY_S:
            after = step(self.found, total, at, may_be_rate=self.may_be_rate)
            if await source.ask(source.steps.adopt, self.key, shared, after, total):
                self.found = after
