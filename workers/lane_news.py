"""What lanes learn, taken over and written down: pauses, first successes, capabilities, limits, estimates.

Owns: LaneNews — into the database first, then to Redis and to the lanes that share the key. Rare events, each
written in a thread. May not touch: lines, claims.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from batch.operations.world import World
from batch.providers.headers import parse_rate_headers
from batch.providers.learned import learn_support
from batch.settings import PROBE_EVERY_S
from batch.storage import lanes as lane_rows
from batch.telemetry import emit
from workers.lane import Lane
from workers.pacer import Pacer
from workers.pacer_source import Pause

if TYPE_CHECKING:
    from workers.pump import Pump


class LaneNews:
    """One per process; called on the event loop. The pump lends its lanes and its threads."""

    def __init__(self, world: World, pacer: Pacer, pump: Pump) -> None:
        self._world = world
        self._pacer = pacer
        self._pump = pump

    def pause(self, lane: Lane, pause: Pause, *, whole_key: bool = False) -> None:
        """A wrong key, a quota, a daily limit: into the database first, then to Redis and the other lanes."""
        if lane.blocked_until >= pause.until - 1.0:
            return  # the other calls of the same incident
        for other in self._pump.lanes.values():
            if other is lane or (whole_key and other.parts.pace.key_name == lane.parts.pace.key_name):
                other.on_probation = True
                other.block(pause.until)
        self._pump.spawn(self._pump.guarded("pause", self._write_pause(lane, pause, whole_key)))

    async def _write_pause(self, lane: Lane, pause: Pause, whole_key: bool) -> None:
        provider, model = lane.context.provider, lane.context.model
        seconds = pause.until - self._world.clock.now()

        def write() -> None:
            with self._world.db.write() as conn:
                ids = [lane.id]
                if whole_key:
                    ids = lane_rows.find_lanes(conn, provider=provider.name, key_id=provider.key_id)
                lane_rows.pause_lane(conn, ids, seconds, pause.code, pause.reason)

        await self._pump.in_thread(write)
        emit("lane_paused", provider=provider.name, model=model, code=pause.code, seconds=round(seconds, 1))
        await self._pacer.pause(lane.parts.pace, pause, whole_key=whole_key)

    def engine_failed(self, provider: str, reason: str) -> None:
        """A managed engine does not start: its lanes stand for a minute, and say why."""
        pause = Pause(self._world.clock.now() + PROBE_EVERY_S, "engine_down", reason)
        for lane in self._pump.lanes.values():
            if lane.context.provider.name == provider:
                self.pause(lane, pause)

    def note_first_success(self, lane: Lane) -> None:
        was_paused, lane.on_probation = lane.on_probation, False

        def write() -> None:
            with self._world.db.write() as conn:
                lane_rows.note_success(conn, [lane.id])
                if was_paused:
                    lane_rows.resume_lane(conn, [lane.id])

        self._pump.spawn(self._pump.guarded("note_success", self._pump.in_thread(write)))
        if was_paused:
            emit("lane_resumed", provider=lane.context.provider.name, model=lane.context.model)
        lane.fill()

    def note_support(self, lane: Lane, support: Mapping[str, str]) -> None:
        """What answers showed of the model's capabilities."""
        context = lane.context
        patch = learn_support(lane.learned, context.card, lane.evidence.weigh(support))
        if patch:
            self.save_learned(lane, patch)
            context.card = context.provider.card(context.model, lane.learned)

    def note_rates(self, lane: Lane, headers: Mapping[str, str]) -> None:
        """What an answer's headers say of limits."""
        rules = lane.context.provider.preset.rate_headers
        changed = lane.parts.pace.learn(parse_rate_headers(headers, rules, self._world.clock.now()))
        if changed:
            self.save_learned(lane, {"limits": {**(lane.learned.get("limits") or {}), **changed}})

    def save_learned(self, lane: Lane, patch: Mapping[str, Any]) -> None:
        lane.learned = {**lane.learned, **patch}

        def write() -> None:
            with self._world.db.write() as conn:
                lane_rows.merge_facts(conn, lane.id, "learned", patch)

        self._pump.spawn(self._pump.guarded("learn", self._pump.in_thread(write)))
