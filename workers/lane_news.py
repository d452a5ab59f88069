"""What lanes learn, written down: pauses, first successes, capabilities, limits, estimates.

Owns: LaneNews — into the database first, then to Redis and to the lanes that share the key. Rare events, each
written in a thread. May not touch: lines, claims.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from batch.domain.progress import LineState
from batch.domain.retry import Action, Decision
from batch.operations.world import World
from batch.settings import PROBE_EVERY_S
from batch.storage import lanes as lane_rows
from batch.telemetry import emit
from workers.lane import Lane
from workers.lane_maker import LaneMaker

T = TypeVar("T")


class Background(Protocol):
    """What the pump lends: its lanes, its threads, its wall."""

    lanes: dict[int, Lane]

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None: ...
    async def in_thread(self, work: Callable[..., T], *args: Any) -> T: ...
    async def guarded(self, name: str, work: Coroutine[Any, Any, T]) -> T | None: ...


class LaneNews:
    """One per process; called on the event loop."""

    def __init__(self, world: World, maker: LaneMaker, background: Background) -> None:
        self._world = world
        self._maker = maker
        self._background = background

    def pause(self, lane: Lane, decision: Decision) -> None:
        """A wrong key, a quota, a daily limit: into the database first, then to Redis and the other lanes."""
        until = decision.until or self._world.clock.now()
        if lane.blocked_until >= until - 1.0:
            return  # the other calls of the same incident
        whole_key = decision.action is Action.PAUSE_KEY
        for other in self._sharing(lane, whole_key):
            other.on_probation = True
            other.block(until)
        self._background.spawn(self._background.guarded("pause", self._write_pause(lane, decision, until, whole_key)))

    async def _write_pause(self, lane: Lane, decision: Decision, until: float, whole_key: bool) -> None:
        view, code = lane.parts.view, decision.code or "paused"
        seconds = until - self._world.clock.now()

        def write() -> None:
            with self._world.db.write() as conn:
                ids = [lane.id]
                if whole_key:
                    ids = lane_rows.find_lanes(conn, provider=view.provider, key_id=view.key_id)
                lane_rows.pause_lane(conn, ids, seconds, code, decision.reason)

        await self._background.in_thread(write)
        emit("lane_paused", provider=view.provider, model=view.model, code=code, seconds=round(seconds, 1))
        await lane.parts.pacer.pause(view, until, code, decision.reason, whole_key=whole_key)

    def engine_failed(self, provider: str, reason: str) -> None:
        """A managed engine does not start: its lanes stand for a minute, and say why."""
        until = self._world.clock.now() + PROBE_EVERY_S
        for lane in self._background.lanes.values():
            if lane.parts.view.provider == provider:
                decision = Decision(Action.PAUSE_LANE, LineState(), reason, until=until, code="engine_down")
                self.pause(lane, decision)

    def note_first_success(self, lane: Lane) -> None:
        was_paused, lane.on_probation = lane.on_probation, False

        def write() -> None:
            with self._world.db.write() as conn:
                lane_rows.note_success(conn, [lane.id])
                if was_paused:
                    lane_rows.resume_lane(conn, [lane.id])

        self._background.spawn(self._background.guarded("note_success", self._background.in_thread(write)))
        if was_paused:
            emit("lane_resumed", provider=lane.parts.view.provider, model=lane.parts.view.model)
        lane.fill()

    def note_learned(self, lane: Lane, support: dict[str, str]) -> None:
        patch = self._maker.learn_support(lane, support)
        if patch:
            self._save_learned(lane, patch)

    def note_rates(self, lane: Lane, headers: dict[str, str]) -> None:
        patch = self._maker.learn_rates(lane, headers)
        if patch:
            self._save_learned(lane, patch)

    def note_estimates(self, lane: Lane, patch: dict[str, Any]) -> None:
        lane.learned = {**lane.learned, **patch}
        self._save_learned(lane, patch)

    def _save_learned(self, lane: Lane, patch: dict[str, Any]) -> None:
        def write() -> None:
            with self._world.db.write() as conn:
                lane_rows.merge_facts(conn, lane.id, "learned", patch)

        self._background.spawn(self._background.guarded("learn", self._background.in_thread(write)))

    def _sharing(self, lane: Lane, whole_key: bool) -> list[Lane]:
        view = lane.parts.view
        if not whole_key:
            return [lane]
        return [
            other
            for other in self._background.lanes.values()
            if (other.parts.view.provider, other.parts.view.key_id) == (view.provider, view.key_id)
        ]
