"""Time and chance, injected.

Owns: the only places where the process reads a clock, waits, or draws randomness.
May not touch: anything else of the project; every floor may import it.
Lease times are compared by the database's clock, never by this one (see storage.engine).
"""

from __future__ import annotations

import asyncio
import random
import time


class Clock:
    """The real clock and the operating system's randomness. Seconds are floats; wall time is Unix seconds, UTC."""

    def __init__(self, chance: random.Random | None = None) -> None:
        chance = chance or random.SystemRandom()
        self.uniform, self.randbytes = chance.uniform, chance.randbytes

    now = staticmethod(time.time)             # without a frame of their own: several a call
    monotonic = staticmethod(time.monotonic)

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    async def sleep_async(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


SYSTEM_CLOCK = Clock()
