"""How many calls of a lane may be in flight in this process, where nothing else limits them.

Owns: first_size and Window — it doubles while it is used, stops growing when answers of equal length become slow and
steps back when they become much slower; latency counts per output token, and only that of answers. An
engine's queue gauge, where read, takes over. Never below 1. What 429s teach is domain.found_limit's.
May not touch: waiting, Redis, HTTP.
"""

from __future__ import annotations

from batch.domain.limits import Limits

SLOWER = 2.0            # short-term latency over long-term: no growth
MUCH_SLOWER = 3.0       # a step back, once per round
SHORT_S, LONG_S = 2.0, 60.0  # time constants of the two latencies
TYPICAL_TOKENS = 20.0   # the part of a latency that does not depend on the answer's length, in tokens
GAUGE_FRESH_S = 10.0
REFUSED_S = 1.0         # without growth after a refusal
RATED_SIZE, RATED_S = 64, 30  # at first where a rate is known: so many calls, or the rate with answers of 30 s
QUEUE_LOW, QUEUE_HIGH = 0.05, 0.25  # of running: what an engine should have waiting
CACHE_FULL = 0.95


def first_size(limits: Limits, workers: int, *, is_engine: bool) -> int:
    """Calls in flight for a process to begin with.

    What is known is used at once: a rate, which the pacer keeps to, or a number, which workers share (an engine's
    only caps what its own queue allows). Where nothing is known, all workers together begin with a few.
    """
    if limits.has_rate:
        return max(RATED_SIZE, limits.start_concurrency, round(RATED_S * (limits.requests_per_second_bound or 0)))
    if limits.concurrency and not is_engine:
        return limits.concurrency
    return max(1, limits.start_concurrency // workers)


class Window:
    """Adaptive limit of calls in flight, per lane. Times are monotonic seconds.

    Each call: on_start(), then exactly one of on_success, on_refusal (429, overload) or on_end.
    """

    def __init__(self, *, start: int = 8, maximum: int = 2_000) -> None:
        self._maximum = float(max(1, maximum))
        self._size = min(float(max(1, start)), self._maximum)
        self._fast_size = self._size  # the last with which answers were not slow
        self.in_flight = 0
        self._short = 0.0
        self._long = 0.0
        self._typical = 0.0  # output tokens
        self._seen = 0
        self._learned_at = 0.0
        self._stepped_at = float("-inf")
        self._gauge_at = float("-inf")
        self._refused_at = float("-inf")

    @property
    def size(self) -> int:
        return int(self._size)

    @property
    def room(self) -> int:
        return max(0, int(self._size) - self.in_flight)

    def on_start(self) -> None:
        self.in_flight += 1

    def on_success(self, now: float, latency_s: float, output_tokens: int = 0) -> None:
        self.on_end()
        self._learn_latency(now, latency_s, output_tokens)
        if now - self._gauge_at < GAUGE_FRESH_S or (self.in_flight + 1) * 2 < self._size:
            return
        if self._is_slower(MUCH_SLOWER):
            self._step_back(now, latency_s)
        elif not self._is_slower(SLOWER):
            self._fast_size = self._size
            if now - self._refused_at >= REFUSED_S:
                self._size = min(self._maximum, self._size + 1.0)

    def on_refusal(self, now: float) -> None:
        """Refused by load: no growth for a moment. What the limit is, all workers find together (pacer_found.py)."""
        self.on_end()
        self._refused_at = now

    def on_end(self) -> None:
        """A failure that says nothing about load: a refused line, a broken connection, a cancelled call."""
        self.in_flight = max(0, self.in_flight - 1)

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
        self._seen = 0

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

    def _step_back(self, now: float, latency_s: float) -> None:
        if now - self._stepped_at > max(1.0, latency_s):
            self._stepped_at = now
            # by half at most: slowness that we do not cause would not end by it
            self._size = max(1.0, min(self._size, self._fast_size / 2), self._size * 0.95)
