"""This process's share of a concurrency limit that all workers hold together.

Owns: Share — how many calls may be in flight here, asked of Redis about once a second, not per call.
A share that was not renewed in time is not used, and lapses in Redis by itself. Used by
workers/pacer_lane.py only. May not touch: waiters, slots.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from batch.clock import Clock
from batch.settings import SHARE_EXPIRES_S

LOCAL_SHARE = 0.5  # of each limit, divided by the live workers, while Redis is away
LOCAL_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0


class Share:
    """`ask` is one Redis step: (cap, in use, wanted) → calls below which another may start; None: Redis is away."""

    def __init__(
        self,
        cap: int,
        *,
        ask: Callable[[int, int, int], Awaitable[int | None]],
        clock: Clock,
        live_workers: Callable[[], int],
    ) -> None:
        self.cap = cap
        self._ask = ask
        self._clock = clock
        self._live_workers = live_workers
        self._target = 0
        self._until = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._ask_at = 0.0
        self._freed = asyncio.Event()

    def set_cap(self, cap: int) -> None:
        """The limit is another now: who waits asks again, and what a higher one gave is no longer trusted."""
        if cap < self.cap:
            self._until = 0.0
        self.cap, self._ask_at = cap, 0.0
        self._freed.set()

    def release(self) -> None:
        """A call ended: who waits for room looks again."""
        self._freed.set()

    @property
    def target(self) -> int:
        """Trusted for two thirds of its life in Redis, counted from before it was asked for."""
        return self._target if self._clock.monotonic() < self._until else 0

    async def free(self, in_use: Callable[[], int], waiting: int) -> int:
        """Calls that may start now; 0 after having waited for a call to end or for a larger share."""
        room = self.target - in_use()
        if room > 0:
            return room
        now = self._clock.monotonic()
        if now >= self._ask_at or not self.target:
            before = self._target
            await self.renew(in_use(), in_use() + waiting)
            room = self.target - in_use()
            self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2) if self._target == before else FIRST_PAUSE_S
            self._ask_at = self._clock.monotonic() + self._pause_s
            if room > 0:
                return room
        await self._wait_for_room(self._ask_at - self._clock.monotonic())
        return max(0, self.target - in_use())

    async def renew(self, in_use: int, want: int) -> None:
        asked_at = self._clock.monotonic()
        got = await self._ask(self.cap, in_use, want)
        if got is not None:
            self._target, self._until = got, asked_at + SHARE_EXPIRES_S * 2 / 3
        elif asked_at >= self._until:
            self._target = max(1, int(self.cap * LOCAL_SHARE / max(1, self._live_workers())))
            self._until = asked_at + LOCAL_S

    async def _wait_for_room(self, at_most_s: float) -> None:
        self._freed.clear()
        waits = {
            asyncio.ensure_future(self._freed.wait()),
            asyncio.ensure_future(self._clock.sleep_async(max(0.001, at_most_s))),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
