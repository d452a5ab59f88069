"""Time and chance, injected.

Owns: the only places where the process reads a clock, waits, or draws randomness.
May not touch: anything else of the project; every floor may import it.
Lease times are compared by the database's clock, never by this one (see storage.engine).
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Protocol


class Clock(Protocol):
    """What code asks of time and chance. Seconds are floats; wall time is Unix seconds, UTC."""

    def now(self) -> float: ...
    def monotonic(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...
    async def sleep_async(self, seconds: float) -> None: ...
    def uniform(self, low: float, high: float) -> float: ...
    def randbytes(self, count: int) -> bytes: ...


class SystemClock:
    """The real clock and the operating system's randomness."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    now = staticmethod(time.time)             # without a frame of their own: several a call
    monotonic = staticmethod(time.monotonic)

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    async def sleep_async(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def randbytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


class FakeClock:
    """A clock that tests move by hand. Sleeping advances it; async sleeping yields once."""

    def __init__(self, now: float = 1_790_000_000.0, seed: int = 1) -> None:
        self._now = now
        self._random = random.Random(seed)  # noqa: S311 - reproducible tests, not secrets
        self._lock = threading.Lock()
        self.slept: list[float] = []

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(max(0.0, seconds))

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)
        await asyncio.sleep(0)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def randbytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


SYSTEM_CLOCK: Clock = SystemClock()
