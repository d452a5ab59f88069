"""A clock that tests move by hand."""

from __future__ import annotations

import asyncio
import random

from batch.clock import Clock


class FakeClock(Clock):
    """Sleeping advances it; async sleeping yields once. Chance is the same in each run."""

    def __init__(self, now: float = 1_790_000_000.0) -> None:
        super().__init__(random.Random(1))
        self._now = now
        self.now = self.monotonic = lambda: self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def sleep(self, seconds: float) -> None:
        self.advance(max(0.0, seconds))

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)
        await asyncio.sleep(0)
