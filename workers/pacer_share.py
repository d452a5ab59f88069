"""This process's share of a concurrency limit that all workers hold together.

Owns: Share — how many calls may be in flight here, asked of Redis about once a second, not per call.
A share that was not renewed in time is not used, and lapses in Redis by itself. Used by
workers/pacer_lane.py only. May not touch: waiters, slots.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from batch.settings import SHARE_EXPIRES_S
from workers.pacer_source import SlotSource

LOCAL_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0


class Share:
    """Of `cap` calls in flight, which all workers of the bucket `key` hold together."""

    def __init__(self, cap: int, key: str, source: SlotSource) -> None:
        self.cap = cap
        self.key = key
        self._source = source
        self._clock = source.clock
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
        asked_at, source = self._clock.monotonic(), self._source
        got = await source.ask(source.steps.share, self.key, source.worker, cap=self.cap, in_use=in_use, want=want)
        if got is not None:
            self._target, self._until = got, asked_at + SHARE_EXPIRES_S * 2 / 3
        elif asked_at >= self._until:
            self._target = max(1, int(self.cap * source.local_share))
            self._until = asked_at + LOCAL_S

    async def _wait_for_room(self, at_most_s: float) -> None:
        self._freed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.001, at_most_s)):
                await self._freed.wait()
