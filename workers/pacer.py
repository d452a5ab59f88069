"""Pacing: when may the next call of a lane be sent?

Owns: Pacer (one per process) and its promise: all workers together stay within each known limit of a
lane or of its key, at a share that tunes itself, in slots leased from Redis many at a time; pauses and
holds are obeyed at once. A limit that nobody states is found by all together (pacer_found.py); until
the first refusal that costs one Redis call a second.
Step: pace. May not touch: the database (a pause is written there first, by the caller), retries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from batch.clock import SYSTEM_CLOCK, Clock
from batch.domain.found_limit import Found
from batch.domain.limits import Limits
from workers.pacer_lane import PacedLane
from workers.pacer_source import Pause, SlotSource
from workers.pacer_steps import Steps

TICK_S = 1.0


class Pacer:
    """Makes the paced lanes of one process and keeps them; for one event loop.

    `live_workers` says how many worker processes there are, for the share of each while Redis is away.
    """

    def __init__(
        self, steps: Steps, *, worker: str, clock: Clock = SYSTEM_CLOCK, live_workers: Callable[[], int] = lambda: 1
    ) -> None:
        self._steps = steps
        self._worker = worker
        self._clock = clock
        self.live_workers = live_workers
        self._lanes: list[PacedLane] = []
        self._keeper: asyncio.Task[None] | None = None

    def lane(
        self, provider: str, key_id: str, model: str, limits: Limits, *, counters: Mapping[str, Any] | None = None,
        found: Mapping[str, Any] | None = None,
    ) -> PacedLane:
        """A lane of this process. `counters` are those of `lanes.counters`, to re-seed a Redis that lost all,
        `found` is `lanes.learned["found"]`."""
        scope = f"batchmill:pace:{{{provider}/{key_id}}}"
        source = SlotSource(f"{scope}:model:{model}", self._steps, self._worker, self._clock, self.live_workers)
        lane = PacedLane(source, f"{scope}:key", limits, counters or {}, Found.kept(found))
        self._lanes.append(lane)
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        return lane

    async def pause(self, lane: PacedLane, pause: Pause, *, whole_key: bool = False) -> None:
        """Copy a pause, already in the database, to Redis and to waiting lines."""
        for other in self._lanes:
            if other is lane or (whole_key and other.key_name == lane.key_name):
                other.pause(pause)
        await lane.copy_pause(pause, whole_key=whole_key)

    async def close(self) -> None:
        """Stop waiting; waiters are cancelled by their own tasks."""
        if self._keeper is not None:
            self._keeper.cancel()
        for lane in self._lanes:
            await lane.close()

    async def _keep(self) -> None:
        """Once a second: keep concurrency shares alive, settle what no lease has carried."""
        while True:
            await self._clock.sleep_async(TICK_S)
            for lane in list(self._lanes):
                await lane.keep()
