"""Limits as vendors enforce them: token buckets, fixed windows, concurrency; requests and tokens.

Owns: admission of one request against every limit of its key, and the figures that rate-limit
headers show. A refused request costs nothing.
May not touch: HTTP. Time is given, in Unix seconds, so that fixed windows align as clocks do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from batch.simulator.config import Limit, LimitedThing


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens of one request: its prompt, and the most that its answers may have."""

    input: int
    output_max: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What a header shows: of `limit`, `remaining` is left, and it is whole again in `reset_s` seconds."""

    what: LimitedThing
    per_s: float
    limit: float
    remaining: float
    reset_s: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """The limit that was hit, what was used and asked for, and the seconds until it would fit (inf: never)."""

    limit: Limit
    used: float
    requested: float
    retry_after_s: float


class TokenBucket:
    """Refills continuously; starts full. Giving back never overfills; a late charge may make it negative."""

    def __init__(self, limit: Limit, now: float) -> None:
        self._rate = limit.amount / limit.per_s
        self._capacity = limit.capacity
        self._level = limit.capacity
        self._at = now

    def wait_s(self, now: float, amount: float) -> float:
        self._refill(now)
        if amount > self._capacity + 1e-9:
            return math.inf
        return max(0.0, (amount - self._level - 1e-9) / self._rate)

    def take(self, now: float, amount: float) -> None:
        self._refill(now)
        self._level -= amount

    def give(self, now: float, amount: float) -> None:
        self._refill(now)
        self._level = min(self._capacity, self._level + amount)

    def used(self, now: float) -> float:
        self._refill(now)
        return self._capacity - self._level

    def reset_s(self, now: float) -> float:
        return self.used(now) / self._rate

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._level = min(self._capacity, self._level + (now - self._at) * self._rate)
            self._at = now


class FixedWindow:
    """A counter that returns to zero when the clock enters the next window."""

    def __init__(self, limit: Limit, now: float) -> None:
        self._length = math.inf if limit.what == "concurrency" else limit.window_s
        self._capacity = limit.capacity
        self._window = int(now // self._length)
        self._used = 0.0

    def wait_s(self, now: float, amount: float) -> float:
        self._roll(now)
        if amount > self._capacity + 1e-9:
            return math.inf
        return 0.0 if self._used + amount <= self._capacity + 1e-9 else self.reset_s(now)

    def take(self, now: float, amount: float) -> None:
        self._roll(now)
        self._used += amount

    def give(self, now: float, amount: float) -> None:
        self._roll(now)
        self._used = max(0.0, self._used - amount)

    def used(self, now: float) -> float:
        self._roll(now)
        return self._used

    def reset_s(self, now: float) -> float:
        return (now // self._length + 1) * self._length - now

    def _roll(self, now: float) -> None:
        window = int(now // self._length)
        if window != self._window:
            self._window, self._used = window, 0.0


class Concurrency(FixedWindow):
    """A window without end: a slot is held from admission to the end of the answer."""

    def wait_s(self, now: float, amount: float) -> float:
        return 0.0 if self._used + amount <= self._capacity else 1.0

    def reset_s(self, now: float) -> float:
        return 0.0


Gate = TokenBucket | FixedWindow


class Limiter:
    """All limits, a gate for each key (and model where the limit says so)."""

    def __init__(self, limits: tuple[Limit, ...]) -> None:
        self.limits = limits
        self._gates: dict[tuple[int, str, str], Gate] = {}

    def admit(self, now: float, key: str, model: str, cost: Cost) -> Ticket | Refusal:
        """Take from every gate, or from none."""
        held = [
            (limit, self._gate(i, limit, now, key, model), _charged(limit, cost)) for i, limit in enumerate(self.limits)
        ]
        for limit, gate, amount in held:
            wait = gate.wait_s(now, amount)
            if wait > 0:
                return Refusal(limit, gate.used(now), amount, wait)
        for _limit, gate, amount in held:
            gate.take(now, amount)
        return Ticket(held, cost)

    def readings(self, now: float, key: str, model: str) -> list[Reading]:
        readings = []
        for i, limit in enumerate(self.limits):
            gate = self._gate(i, limit, now, key, model)
            left = max(0.0, limit.amount - gate.used(now) * limit.amount / limit.capacity)
            readings.append(Reading(limit.what, limit.per_s, limit.amount, left, gate.reset_s(now)))
        return readings

    def _gate(self, index: int, limit: Limit, now: float, key: str, model: str) -> Gate:
        name = (index, key, model if limit.scope == "model" else "")
        gate = self._gates.get(name)
        if gate is None:
            gate = self._gates[name] = _make_gate(limit, now)
        return gate


class Ticket:
    """What an admitted request took; `settle` gives back slots and corrects tokens, once."""

    __slots__ = ("_cost", "_held")

    def __init__(self, held: list[tuple[Limit, Gate, float]], cost: Cost) -> None:
        self._held = held
        self._cost = cost

    def settle(self, now: float, input_tokens: int, output_tokens: int) -> None:
        held, self._held = self._held, []
        for limit, gate, taken in held:
            if limit.what == "concurrency":
                gate.give(now, taken)
            elif limit.what != "requests" and limit.charge in {"reserve_refund", "actual"}:
                actual = _charged(limit, Cost(input_tokens, output_tokens), settled=True)
                if actual > taken:
                    gate.take(now, actual - taken)
                else:
                    gate.give(now, taken - actual)


def _charged(limit: Limit, cost: Cost, *, settled: bool = False) -> float:
    if limit.what in {"requests", "concurrency"}:
        return 1.0
    reserved_output = cost.output_max if settled or limit.charge in {"reserve_max", "reserve_refund"} else 0
    if limit.what == "input_tokens" or limit.charge == "input_only":
        return float(cost.input)
    if limit.what == "output_tokens":
        return float(reserved_output)
    return float(cost.input + reserved_output)


def _make_gate(limit: Limit, now: float) -> Gate:
    if limit.what == "concurrency":
        return Concurrency(limit, now)
    return FixedWindow(limit, now) if limit.kind == "fixed_window" else TokenBucket(limit, now)
