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


class Gate:
    """What one key has used of one limit. A bucket forgets it continuously, a fixed window at its end, and of
    concurrency it is given back. Never below zero; a late charge may lift it over the capacity."""

    def __init__(self, limit: Limit, now: float) -> None:
        self._limit = limit
        self._capacity = limit.capacity
        self._rate = limit.amount / limit.per_s
        self._used = 0.0
        self._at = now

    def used(self, now: float) -> float:
        limit = self._limit
        if limit.what != "concurrency" and limit.kind == "fixed_window":
            if now // limit.window_s != self._at // limit.window_s:
                self._used = 0.0
        elif limit.what != "concurrency" and now > self._at:
            self._used = max(0.0, self._used - (now - self._at) * self._rate)
        self._at = max(now, self._at)
        return self._used

    def charge(self, now: float, amount: float) -> None:
        """Less than nothing gives back."""
        self._used = max(0.0, self.used(now) + amount)

    def wait_s(self, now: float, amount: float) -> float:
        """Until `amount` would fit: 0 now, inf never."""
        excess = self.used(now) + amount - self._capacity - 1e-9
        if excess <= 0:
            return 0.0
        if self._limit.what == "concurrency":
            return 1.0
        if amount > self._capacity + 1e-9:
            return math.inf
        return self.reset_s(now) if self._limit.kind == "fixed_window" else excess / self._rate

    def reset_s(self, now: float) -> float:
        """Until nothing is used."""
        window_s = self._limit.window_s
        if self._limit.what == "concurrency":
            return 0.0
        return window_s - now % window_s if self._limit.kind == "fixed_window" else self.used(now) / self._rate

    def read(self, now: float) -> Reading:
        limit = self._limit
        left = max(0.0, limit.amount - self.used(now) * limit.amount / self._capacity)
        return Reading(limit.what, limit.per_s, limit.amount, left, self.reset_s(now))


class Limiter:
    """All limits, a gate for each key (and model where the limit says so)."""

    def __init__(self, limits: tuple[Limit, ...]) -> None:
        self.limits = limits
        self._gates: dict[tuple[int, str, str], Gate] = {}

    def admit(self, now: float, key: str, model: str, cost: Cost) -> Ticket | Refusal:
        """Take from every gate, or from none."""
        amounts = [_charged(limit, cost) for limit in self.limits]
        held = list(zip(self.limits, self._gates_of(now, key, model), amounts, strict=True))
        for limit, gate, amount in held:
            if (wait_s := gate.wait_s(now, amount)) > 0:
                return Refusal(limit, gate.used(now), amount, wait_s)
        for _limit, gate, amount in held:
            gate.charge(now, amount)
        return Ticket(held)

    def readings(self, now: float, key: str, model: str) -> list[Reading]:
        return [gate.read(now) for gate in self._gates_of(now, key, model)]

    def _gates_of(self, now: float, key: str, model: str) -> list[Gate]:
        gates = []
        for index, limit in enumerate(self.limits):
            name = (index, key, model if limit.scope == "model" else "")
            if name not in self._gates:
                self._gates[name] = Gate(limit, now)
            gates.append(self._gates[name])
        return gates


class Ticket:
    """What an admitted request took; `settle` gives back slots and corrects tokens, once."""

    __slots__ = ("_held",)

    def __init__(self, held: list[tuple[Limit, Gate, float]]) -> None:
        self._held = held

    def settle(self, now: float, input_tokens: int, output_tokens: int) -> None:
        held, self._held = self._held, []
        for limit, gate, taken in held:
            if limit.what == "concurrency":
                gate.charge(now, -taken)
            elif limit.what != "requests" and limit.charge in {"reserve_refund", "actual"}:
                gate.charge(now, _charged(limit, Cost(input_tokens, output_tokens), settled=True) - taken)


def _charged(limit: Limit, cost: Cost, *, settled: bool = False) -> float:
    if limit.what in {"requests", "concurrency"}:
        return 1.0
    reserved_output = cost.output_max if settled or limit.charge in {"reserve_max", "reserve_refund"} else 0
    if limit.what == "input_tokens" or limit.charge == "input_only":
        return float(cost.input)
    if limit.what == "output_tokens":
        return float(reserved_output)
    return float(cost.input + reserved_output)
