"""How many calls of a lane may be in flight here, where no limit says it: found by trying.

Owns: Window — grows only while it is used: doubling until the first refusal, then along a cubic that
lingers at the last known ceiling and tries beyond it later, so that a limit which doubles is followed.
One cut per incident, deeper when most of a round was refused. Latency counts per output token. An
engine's queue gauge, where read, takes over. Never below 1. May not touch: waiting, Redis, HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass

CUT = 0.9               # of the size, at the first refusal of an incident
LINGER_S = 15.0         # from a cut back to the last ceiling; as long again until the ceiling is tried
DEEP_SHARE = 0.15       # of a round refused: the size follows the share that passed
DEEPEST = 0.1
SLOWER = 2.0            # short-term latency over long-term: no growth
MUCH_SLOWER = 3.0       # a step back, once per round
SHORT_S, LONG_S = 2.0, 60.0  # time constants of the two latencies
TYPICAL_TOKENS = 20.0   # the part of a latency that does not depend on the answer's length, in tokens
GAUGE_FRESH_S = 10.0
QUEUE_LOW, QUEUE_HIGH = 0.05, 0.25  # of running: what an engine should have waiting
CACHE_FULL = 0.95


@dataclass(slots=True)
class _Round:
    """The calls that were in flight at a cut: what became of them decides whether once was enough."""

    left: int
    passed: int = 0
    refused: int = 0


class Window:
    """Adaptive limit of calls in flight, per lane (and replica). Times are monotonic seconds.

    Each call: `started = on_start(now)`, then exactly one of on_success, on_drop (429, overload, our own
    time limit) or on_end (anything that says nothing about load).
    """

    def __init__(self, *, start: int = 8, maximum: int = 2_000) -> None:
        self._maximum = float(max(1, maximum))
        self._size = min(float(max(1, start)), self._maximum)
        self.in_flight = 0
        self._ceiling: float | None = None  # None: no refusal yet, the size may double
        self._cut_at = float("-inf")
        self._round: _Round | None = None
        self._short = 0.0
        self._long = 0.0
        self._typical = 0.0  # output tokens
        self._seen = 0
        self._learned_at = 0.0
        self._stepped_at = float("-inf")
        self._gauge_at = float("-inf")
        self.cuts = 0

    @property
    def size(self) -> int:
        return int(self._size)

    @property
    def room(self) -> int:
        return max(0, int(self._size) - self.in_flight)

    def on_start(self, now: float) -> float:
        """A call starts; give the returned stamp back at its end."""
        self.in_flight += 1
        return now

    def on_success(self, now: float, started: float, latency_s: float, output_tokens: int = 0) -> None:
        self._end(started, passed=True)
        self._learn_latency(now, latency_s, output_tokens)
        if now - self._gauge_at < GAUGE_FRESH_S or (self.in_flight + 1) * 2 < self._size:
            return
        if self._is_slower(MUCH_SLOWER):
            self._step_back(now, latency_s)
        elif self._is_slower(SLOWER):
            self._linger(now)
        else:
            self._grow(now)

    def on_drop(self, now: float, started: float) -> None:
        """A refusal by load. Those of calls that were already in flight at a cut belong to its incident."""
        in_flight = self.in_flight
        self._end(started, passed=False)
        if started <= self._cut_at:
            return
        self._ceiling = self._size
        self._size = max(1.0, self._size * CUT)
        self._cut_at = now
        self._round = _Round(left=in_flight - 1, refused=1)
        self.cuts += 1

    def on_end(self, now: float, started: float) -> None:
        """A failure that says nothing about load: a refused line, a broken connection, a cancelled call."""
        self._end(started, passed=None)

    def on_gauge(
        self, now: float, *, running: float, waiting: float, cache_used: float | None = None, is_pressed: bool = False
    ) -> None:
        """An engine's own queue, 1–2 times a second: keep a little waiting there, and no more.

        `is_pressed`: it had to throw work out since the last reading. That, or a full cache, ends the growth
        and takes a step back.
        """
        self._gauge_at = now
        busy = max(1.0, running)
        if waiting > QUEUE_HIGH * busy:
            self._size = max(1.0, min(self._size, max(1.0, self.in_flight - (waiting - QUEUE_LOW * busy) / 2)))
        elif is_pressed or (cache_used is not None and cache_used > CACHE_FULL):
            self._size = max(1.0, min(self._size, 0.95 * max(busy, self.in_flight)))
        elif waiting < QUEUE_LOW * busy and self.in_flight * 2 >= self._size:
            self._size = min(self._maximum, self._size + max(1.0, 0.25 * self._size))

    def restart(self, size: int) -> None:
        """After an outage: begin small and double again."""
        self._size = min(self._maximum, float(max(1, size)))
        self._ceiling = None
        self._round = None
        self._seen = 0

    def _grow(self, now: float) -> None:
        if self._ceiling is None:
            self._size = min(self._maximum, self._size + 1.0)
            return
        # the cubic: at the cut 0.9 of the ceiling, flat around it after LINGER_S, then away
        progress = (now - self._cut_at) / LINGER_S - 1.0
        goal = self._ceiling * (1.0 + (1.0 - CUT) * progress**3)
        if goal > 2.0 * self._ceiling:  # long past: the limit that was there is gone
            self._ceiling = None
            return
        # a small window needs whole calls: the cubic moves less than one
        goal = max(goal, self._ceiling + progress - 1.0) if progress > 1.0 else goal
        self._size = min(self._maximum, max(self._size, goal))

    def _end(self, started: float, *, passed: bool | None) -> None:
        self.in_flight = max(0, self.in_flight - 1)
        current = self._round
        if current is None or started > self._cut_at:
            return
        current.left -= 1
        current.passed += passed is True
        current.refused += passed is False
        if current.left <= 0:
            self._round = None
            answered = current.passed + current.refused
            if answered >= max(4, self._size / 4) and current.refused > DEEP_SHARE * answered:
                share = max(DEEPEST, current.passed / answered)
                self._size = max(1.0, self._size * share)
                self._ceiling = max(1.0, self._size / CUT)

    def _learn_latency(self, now: float, latency_s: float, output_tokens: int) -> None:
        """Latency as if every answer had the typical length: long answers are no queue."""
        self._seen += 1
        first = 1.0 / self._seen if self._seen <= 20 else 0.0
        passed = max(0.0, now - self._learned_at) if self._seen > 1 else 0.0
        self._learned_at = now
        self._typical += max(first, passed / (LONG_S + passed)) * (output_tokens - self._typical)
        normal = latency_s * (self._typical + TYPICAL_TOKENS) / (output_tokens + TYPICAL_TOKENS)
        self._short += max(first, passed / (SHORT_S + passed)) * (normal - self._short)
        self._long += max(first, passed / (LONG_S + passed)) * (normal - self._long)

    def _is_slower(self, times: float) -> bool:
        # below 50 ms it is our own event loop that is measured
        return self._seen >= 20 and self._short > times * self._long and self._short > 0.05

    def _linger(self, now: float) -> None:
        """Slower answers end the doubling: from here on along the cubic."""
        if self._ceiling is None:
            self._ceiling, self._cut_at = self._size, now

    def _step_back(self, now: float, latency_s: float) -> None:
        self._linger(now)
        if now - self._stepped_at > max(1.0, latency_s):
            self._stepped_at = now
            # by half at most: slowness that we do not cause would not end by it
            self._size = max(1.0, min(self._size, (self._ceiling or self._size) / 2), self._size * 0.95)
