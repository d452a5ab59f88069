"""GCRA: exact pacing with one number per dimension, the theoretical arrival time.

Owns: Meter, the model in plain Python that workers/pacer_steps.py repeats in Lua: slots for a list of
costs, sliding windows for hours and days, settling back. Used where Redis is away, and by the tests as
the other half of a comparison. Pure: times are given in seconds of any one clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from batch.domain.limits import Dimension, Unit

WINDOW_PARTS = 120  # a sliding window forgets in this many steps


class Cost(NamedTuple):
    """Tokens that one call is charged: the total, and the part of it that is output."""

    tokens: int = 0
    output: int = 0

    def of(self, unit: Unit) -> float:
        if unit == "request":
            return 1.0
        if unit == "tokens":
            return self.tokens
        return self.output if unit == "output" else self.tokens - self.output


class Grant(NamedTuple):
    """Slots, as seconds from the moment of the lease, in order; and when nothing more fits, how long not."""

    slots: list[float]
    wait_s: float


@dataclass(slots=True)
class Window:
    """At most `cap` units in any `window_s` seconds, remembered in parts; errs towards fewer."""

    width: float
    parts: dict[int, float] = field(default_factory=dict)
    total: float = 0.0

    def forget(self, now: float) -> int:
        """What is too old; the index of the part that `now` belongs to."""
        index = int(now // self.width)
        for old in [i for i in self.parts if i < index - WINDOW_PARTS]:
            self.total -= self.parts.pop(old)
        return index

    def add(self, now: float, amount: float) -> None:
        index = self.forget(now)
        self.parts[index] = self.parts.get(index, 0.0) + amount
        self.total += amount

    def wait(self, now: float, cost: Cost, dim: Dimension) -> float:
        """Seconds until `cost` fits; an empty window takes anything."""
        self.forget(now)
        if self.total <= 0 or self.total + cost.of(dim.unit) <= dim.cap:
            return 0.0
        return (min(self.parts) + WINDOW_PARTS + 1) * self.width - now


@dataclass(slots=True)
class Meter:
    """The state of one bucket. Not safe for threads."""

    arrivals: dict[str, float] = field(default_factory=dict)
    windows: dict[str, Window] = field(default_factory=dict)
    held_until: float = 0.0

    def lease(
        self, now: float, costs: Sequence[Cost], dims: Sequence[Dimension], *, use: float, ahead_s: float
    ) -> Grant:
        """Reserve as many of `costs`, in order, as have a slot within `ahead_s`. `use` scales the rates."""
        slots: list[float] = []
        cursor = max(now, self.held_until)
        for cost in costs:
            slot = max([cursor, *(self._earliest(now, dim) for dim in dims if cost.of(dim.unit) > 0)])
            wait = max([slot - now, *(self._window(dim).wait(now, cost, dim) for dim in dims if dim.window_s)])
            if wait > ahead_s:
                return Grant(slots, wait)
            for dim in dims:
                self._take(now, slot, dim, cost.of(dim.unit), use)
            slots.append(slot - now)
            cursor = slot
        return Grant(slots, 0.0)

    def settle(self, now: float, dims: Sequence[Dimension], difference: Cost, *, use: float) -> None:
        """Correct tokens by actual − estimate; never below now − tolerance, so that no hoard builds up."""
        for dim in dims:
            amount = difference.of(dim.unit)
            if dim.unit != "request" and amount:
                moved = self._arrival(now, dim) + amount / (dim.rate * use)
                self.arrivals[dim.name] = max(now - dim.tolerance_s, moved)
                if dim.window_s:
                    self._window(dim).add(now, amount)

    def hold(self, now: float, wait_s: float) -> None:
        """Nothing before now + wait_s: the provider asked for it."""
        self.held_until = max(self.held_until, now + wait_s)

    def _arrival(self, now: float, dim: Dimension) -> float:
        known = self.arrivals.get(dim.name)
        if known is None:  # a fresh bucket has no credit, except on long windows, whose counters hold
            known = self.arrivals[dim.name] = now if dim.window_s else now + dim.tolerance_s
        return known

    def _earliest(self, now: float, dim: Dimension) -> float:
        return self._arrival(now, dim) - dim.tolerance_s

    def _take(self, now: float, slot: float, dim: Dimension, amount: float, use: float) -> None:
        if amount <= 0:
            return
        self.arrivals[dim.name] = max(self._arrival(now, dim), slot) + amount / (dim.rate * use)
        if dim.window_s:
            self._window(dim).add(now, amount)

    def _window(self, dim: Dimension) -> Window:
        return self.windows.setdefault(dim.name, Window(dim.window_s / WINDOW_PARTS))
