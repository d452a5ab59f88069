"""The heartbeat of a calls process: that it lives, what its lanes are doing, what Redis may not lose.

Owns: the process's row in `workers`, the counters of long windows in `lanes`, handing lines to a worker
that has none. May not touch: claims; nobody decides who holds a slice by heartbeats.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from batch.operations.world import World
from batch.storage import lanes as lane_rows
from batch.storage.workers import WorkerRow, beat_worker, forget_worker, live_workers
from batch.telemetry import emit
from workers.lane import Lane
from workers.pump import Pump

BEAT_S = 5.0
SPLIT_ABOVE = 2  # windows of unsent lines; less is not worth handing over


class Heartbeat:
    """run() on the loop; forget() in a thread at the end."""

    def __init__(self, world: World, name: str, queues: list[str]) -> None:
        self._world = world
        self._name = name
        self._queues = queues
        self._live = 1

    def live_workers(self) -> int:
        """Calls processes that were alive at the last beat, this one included."""
        return self._live

    async def run(self, pump: Pump, engines: Callable[[], dict[str, Any]]) -> None:
        while True:
            try:
                await self._beat(pump, engines())
            except Exception as error:  # the wall of one beat: the next comes in seconds
                emit("storage_retry", work="heartbeat", error=type(error).__name__)
            await self._world.clock.sleep_async(BEAT_S)

    def forget(self, pump: Pump) -> None:
        """The process ends in order: its last counts are told, its row goes."""
        for lane in pump.lanes.values():
            lane.tally.tell(lane.context.provider.name, lane.context.model)
        try:
            with self._world.db.write() as conn:
                forget_worker(conn, self._name)
        except Exception as error:  # the wall of the last write: the row would be swept
            emit("storage_retry", work="forget_worker", error=type(error).__name__)

    async def _beat(self, pump: Pump, engines: dict[str, Any]) -> None:
        facts = {**self._facts(pump), "engines": engines}
        counters = {
            lane.id: found
            for lane in pump.lanes.values()
            if (found := await lane.parts.pace.source.read_counters()) is not None
        }

        def write() -> list[WorkerRow]:
            with self._world.db.write() as conn:
                beat_worker(conn, self._name, "calls", self._queues, facts)
                for lane_id, found in counters.items():
                    lane_rows.merge_facts(conn, lane_id, "counters", found)
            with self._world.db.read() as conn:
                return live_workers(conn, "calls")

        alive = await asyncio.to_thread(write)
        self._live = max(1, len(alive))
        hungry = {lane_id for row in alive if row.name != self._name for lane_id in row.facts.get("hungry", ())}
        for lane_id in hungry & set(pump.lanes):
            _share_tail(pump, pump.lanes[lane_id])

    def _facts(self, pump: Pump) -> dict[str, Any]:
        lanes = {}
        for lane in pump.lanes.values():
            provider, model, parts = lane.context.provider.name, lane.context.model, lane.parts
            facts = lanes[str(lane.id)] = {
                **parts.pace.facts(),
                "is_down": lane.circuit.is_down,
                "retry_in_s": round(max(0.0, lane.circuit.try_at - self._world.clock.monotonic()), 1),
                "window": parts.window.size,
                "in_flight": lane.in_flight,
                "unsent": lane.queue.unsent,
                "rate": round(lane.rate, 2),
            }
            input_error, output_error = lane.estimates.errors
            emit("lane_load", provider=provider, model=model, in_flight=lane.in_flight, window=parts.window.size,
                 input_error=input_error, output_error=output_error)  # fmt: skip
            lane.tally.tell(provider, model)
            emit("limit_used", provider=provider, model=model, ratio=facts["aim"])
        hungry = [lane.id for lane in pump.lanes.values() if lane.is_dry and lane.queue.unsent == 0]
        unserved = sorted(pump.unserved - set(pump.lanes))
        return {"lanes": lanes, "hungry": [] if pump.is_stopping else hungry, "unserved": unserved}


def _share_tail(pump: Pump, lane: Lane) -> None:
    """Another worker has no line of this lane and none is ready: let half of what is unsent here go."""
    if not lane.is_dry or lane.queue.unsent <= SPLIT_ABOVE * max(1, lane.limit):
        return
    left = lane.queue.unsent // 2
    for held in reversed(pump.leases.of_lane(lane.id)):
        left -= lane.release_tail(held, left)
        if left <= 0:
            return
