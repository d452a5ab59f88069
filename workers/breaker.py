"""Circuits per lane and retry budgets per provider, of this process.

Owns: Breakers — asked before a call whether the lane's provider is up, told of every outcome. A lane
whose provider is down is probed by one line at a time; its other lines wait here and spend nothing.
Step: call. May not touch: waiting (the caller sleeps), the decision about a line (domain.retry).
"""

from __future__ import annotations

from batch.clock import Clock
from batch.domain.circuit import OUTAGES, Circuit, RetryBudget
from batch.domain.outcome import Failure, Success


class Breakers:
    """One per process. Lane ids and provider names are the keys; all answers are seconds to wait."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._circuits: dict[int, Circuit] = {}
        self._budgets: dict[str, RetryBudget] = {}

    def admit(self, lane_id: int) -> float:
        """0.0: call now. Else seconds until asking again; nothing is spent by waiting."""
        circuit = self._circuits.get(lane_id)
        return circuit.admit(self._clock.monotonic()) if circuit is not None else 0.0

    def report(self, lane_id: int, provider: str, outcome: Success | Failure) -> str | None:
        """Tell what a call came to. Returns "opened" or "closed" when the circuit changed."""
        circuit = self._circuits.get(lane_id)
        if circuit is None:
            circuit = self._circuits[lane_id] = Circuit()
        now = self._clock.monotonic()
        if isinstance(outcome, Failure) and outcome.kind in OUTAGES:
            return "opened" if circuit.fail(now, self._clock, outcome.retry_after_s) else None
        if not isinstance(outcome, Failure):
            self._budget(provider).note_success()
        # a 4xx, too, shows that somebody is at home
        return "closed" if circuit.succeed(now) else None

    def hurry(self, lane_id: int) -> None:
        """The provider is known to be back: the next call is the probe, now."""
        circuit = self._circuits.get(lane_id)
        if circuit is not None:
            circuit.try_at = self._clock.monotonic()

    def abandon(self, lane_id: int) -> None:
        """A call that was admitted was not sent: if it was the probe, another line may be."""
        circuit = self._circuits.get(lane_id)
        if circuit is not None:
            circuit.abandon_probe()

    def is_down(self, lane_id: int) -> bool:
        circuit = self._circuits.get(lane_id)
        return circuit is not None and circuit.is_down

    def retry_wait(self, provider: str) -> float:
        """0.0: one more retry is within the provider's budget. Else seconds until asking again."""
        return self._budget(provider).take(self._clock.monotonic())

    def facts(self, lane_id: int) -> dict[str, float | bool]:
        """For `workers.facts`: whether the provider is down, and for how long no call is made."""
        circuit = self._circuits.get(lane_id)
        if circuit is None or not circuit.is_down:
            return {"is_down": False}
        return {"is_down": True, "retry_in_s": round(max(0.0, circuit.try_at - self._clock.monotonic()), 1)}

    def _budget(self, provider: str) -> RetryBudget:
        budget = self._budgets.get(provider)
        if budget is None:
            budget = self._budgets[provider] = RetryBudget()
        return budget
