"""Circuit and retry budget: what keeps a provider that is down from being hammered.

Owns: Circuit (closed → open → one probe → closed or open for longer) and RetryBudget (retries at most
a tenth of successes, with a trickle so that nothing starves). Pure: times are given, in monotonic
seconds; chance is given too. May not touch: lanes, calls; a workers/lane.py holds one.
"""

from __future__ import annotations

from dataclasses import dataclass

from batch.clock import Clock
from batch.domain.outcome import Failure, FailureKind, Success

OUTAGES: frozenset[FailureKind] = frozenset(
    {
        FailureKind.CONNECT,
        FailureKind.DISCONNECT,
        FailureKind.TIMEOUT,
        FailureKind.SERVER_ERROR,
        FailureKind.UNAVAILABLE,
        FailureKind.OVERLOADED,
    }
)
IN_A_ROW = 5
SILENT_S = 1.0          # without any success: at high rates five in a row happen by chance
FIRST_OPEN_S, LONGEST_OPEN_S = 5.0, 60.0
PROBE_LOST_S = 700.0    # a probe that never reported back no longer blocks the next
RETRY_SHARE = 0.1
RETRY_BURST = 50.0
RETRY_TRICKLE_PER_S = 5.0


@dataclass(slots=True)
class Circuit:
    """State of one lane's provider. `opened_at` None: closed."""

    failures: int = 0
    succeeded_at: float | None = None
    opened_at: float | None = None
    try_at: float = 0.0
    open_s: float = FIRST_OPEN_S
    probing_since: float | None = None

    @property
    def is_down(self) -> bool:
        return self.opened_at is not None

    def admit(self, now: float) -> float:
        """0.0: call now (the caller is the probe, if the circuit is open). Else seconds until asking again."""
        if self.opened_at is None:
            return 0.0
        if now < self.try_at:
            return self.try_at - now
        if self.probing_since is not None and now - self.probing_since < PROBE_LOST_S:
            return 1.0
        self.probing_since = now
        return 0.0

    def report(self, outcome: Success | Failure, now: float, rng: Clock) -> str | None:
        """Tell what a call came to. Returns "opened" or "closed" when that changed the circuit."""
        if isinstance(outcome, Failure) and outcome.kind in OUTAGES:
            return "opened" if self.fail(now, rng, outcome.retry_after_s) else None
        return "closed" if self.succeed(now) else None  # a 4xx, too, shows that somebody is at home

    def succeed(self, now: float) -> bool:
        """An answer of any kind that shows the provider alive. True when that closed the circuit."""
        was_down = self.is_down
        self.failures = 0
        self.succeeded_at = now
        self.opened_at = None
        self.probing_since = None
        self.open_s = FIRST_OPEN_S
        return was_down

    def fail(self, now: float, rng: Clock, retry_after_s: float | None = None) -> bool:
        """An outage. True when that opened the circuit. Failures of calls sent before it opened count once."""
        self.failures += 1
        if self.opened_at is not None:
            if self.probing_since is not None:
                self.open_s = min(LONGEST_OPEN_S, self.open_s * 2)
                self._open_until(now, rng, retry_after_s)
            return False
        silent = self.succeeded_at is None or now - self.succeeded_at >= SILENT_S
        if self.failures < IN_A_ROW or not silent:
            return False
        self.opened_at = now
        self._open_until(now, rng, retry_after_s)
        return True

    def abandon_probe(self) -> None:
        """The probe was not sent after all (cancelled, paused): the next caller may be it."""
        self.probing_since = None

    def _open_until(self, now: float, rng: Clock, retry_after_s: float | None) -> None:
        self.probing_since = None
        wait = rng.uniform(self.open_s / 2, self.open_s)
        self.try_at = now + max(wait, min(retry_after_s or 0.0, LONGEST_OPEN_S))


@dataclass(slots=True)
class RetryBudget:
    """Retries of one provider: a bucket that successes fill by a tenth each."""

    tokens: float = RETRY_BURST
    at: float | None = None

    def note_success(self) -> None:
        self.tokens = min(RETRY_BURST, self.tokens + RETRY_SHARE)

    def take(self, now: float) -> float:
        """0.0: retry now, one token is spent. Else seconds until asking again; waiting spends no attempt."""
        if self.at is not None and now > self.at:
            self.tokens = min(RETRY_BURST, self.tokens + (now - self.at) * RETRY_TRICKLE_PER_S)
        self.at = now
        if self.tokens >= 1.0:
            self.tokens -= 1.0
            return 0.0
        return (1.0 - self.tokens) / RETRY_TRICKLE_PER_S
