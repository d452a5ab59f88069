"""Pacing: when may the next call of a lane be sent?

Owns: Pacer (one per process) and its promise: all workers together stay within each known limit of a
lane and of its key, at a share that tunes itself, in slots leased from Redis many at a time; pauses and
holds are obeyed at once. A limit that nobody states is found by all together (pacer_found.py); until
the first refusal that costs one Redis call a second.
Step: pace. May not touch: the database (a pause is written there first, by the caller), retries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from batch.clock import SYSTEM_CLOCK, Clock
from batch.domain.found_limit import Found
from batch.domain.gcra import Cost
from batch.domain.limits import Limits
from batch.domain.outcome import Failure, FailureKind, Success
from batch.providers.headers import RateReading
from batch.settings import PROBE_EVERY_S
from workers.pacer_lane import USED_UP, PacedLane, Permit
from workers.pacer_source import LanePaused, Pause
from workers.pacer_steps import Steps

__all__ = ["USED_UP", "LanePaused", "LaneView", "Pacer", "Permit"]

TICK_S = 1.0
_REFUSALS = frozenset({FailureKind.RATE_LIMIT, FailureKind.RATE_DYNAMIC, FailureKind.RATE_CONCURRENCY})
_OVERLOADS = frozenset({FailureKind.OVERLOADED, FailureKind.UNAVAILABLE})


@dataclass(slots=True)
class LaneView:
    """What pacing needs of a lane. Replace `limits` by a new object when they change.

    `limits.scope` says whether they hold for this model or for the whole key; `key_limits` adds limits of
    the key beside the model's. `counters` are those of `lanes.counters`, to re-seed a Redis that lost all,
    `found` is `lanes.learned["found"]`.
    """

    id: int
    provider: str
    key_id: str
    model: str
    limits: Limits
    key_limits: Limits | None = None
    counters: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, Any] | None = None


class Pacer:
    """Hands out permits, one per HTTP call. For one event loop; make it in the process that uses it.

    `redis` None paces by itself at the safe local share. `live_workers` says how many worker processes
    there are, for that share.
    """

    def __init__(
        self,
        redis: Redis | None,
        *,
        worker: str,
        clock: Clock = SYSTEM_CLOCK,
        live_workers: Callable[[], int] = lambda: 1,
    ) -> None:
        self._steps = Steps(redis) if redis is not None else None
        self._worker = worker
        self._clock = clock
        self.live_workers = live_workers
        self._lanes: dict[int, PacedLane] = {}
        self._keeper: asyncio.Task[None] | None = None

    async def permit(self, lane: LaneView, est_tokens: int = 0, est_output: int = 0) -> Permit:
        """Wait for the lane's next slot. `est_tokens` is the total charge, `est_output` its output part.

        Take it just before the send, and give it to done() in any case. Raises LanePaused when the lane is
        paused, or when the next slot is more than a minute away.
        """
        paced = self._lanes.get(lane.id)
        if paced is None or paced.limits is not lane.limits:
            paced = self._paced(lane)
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        return await paced.take(Cost(est_tokens, est_output))

    def done(
        self,
        permit: Permit,
        *,
        actual_tokens: int | None = None,
        actual_output: int = 0,
        outcome: Success | Failure | None = None,
    ) -> None:
        """The call ended: free its concurrency, settle its tokens, learn from a 429. Twice is harmless."""
        if permit.is_done:
            return
        permit.is_done = True
        paced = permit.lane
        paced.end(permit, outcome)
        if isinstance(outcome, Failure):
            if outcome.kind in _REFUSALS:
                paced.note_refusal(outcome.retry_after_s)
            elif outcome.kind in _OVERLOADS:
                paced.note_overload()
            if not outcome.sent:
                actual_tokens, actual_output = 0, 0
        if actual_tokens is not None and paced.refunds and permit.cost is not None:
            paced.source.settle(Cost(actual_tokens - permit.cost.tokens, actual_output - permit.cost.output))

    async def pause(
        self, lane: LaneView, until: float, code: str, reason: str, *, whole_key: bool = False
    ) -> None:
        """Copy a pause, already in the database, to Redis and to waiting lines. `until` is Unix seconds."""
        paced = self._paced(lane)
        for other in self._sharing(paced, whole_key):
            other.pause(Pause(until, code, reason))
        key = paced.key_name if whole_key else paced.model_name
        await paced.source.copy_pause(key, until - self._clock.now(), code, reason)

    async def resume(self, lane: LaneView, *, whole_key: bool = False) -> None:
        """Lift a pause here and in Redis."""
        paced = self._paced(lane)
        for other in self._sharing(paced, whole_key):
            other.resume()
        for key in {paced.model_name, *([paced.key_name] if whole_key else [])}:
            await paced.source.lift_pause(key)

    async def may_probe(self, lane: LaneView) -> bool:
        """After a pause one worker tries the lane, the others wait for what it finds."""
        return await self._paced(lane).source.claim_probe(PROBE_EVERY_S)

    def note_pause(self, lane: LaneView, until: float | None, code: str = "", reason: str = "") -> None:
        """What the database says of the lane's pause (None: not paused); no Redis call. Cheap when unchanged."""
        paced = self._paced(lane)
        if until is not None and until > self._clock.now():
            paced.pause(Pause(until, code, reason))
        elif paced.paused is not None:
            paced.resume()

    def learn(self, lane: LaneView, reading: RateReading) -> dict[str, float] | None:
        """Learn from a response's headers: `limit` may raise or lower a limit, `remaining` only lowers.

        Returns the learned limits for `lanes.learned["limits"]` when they changed (and sets lane.limits).
        """
        if not reading.windows:
            return None
        stated = reading.limits
        before, lane.limits = lane.limits, lane.limits.with_learned(stated)
        changed = lane.limits is not before
        paced = self._paced(lane) if changed else self._lanes.get(lane.id)
        if paced is not None:
            paced.source.lower(reading.remaining)
        if not changed:
            return None
        return {name: value for name, value in stated.items() if getattr(lane.limits, name) != getattr(before, name)}

    def waiting_worth(self, lane: LaneView) -> int:
        """How many lines should wait for a permit so that no slot is lost: one look-ahead of the rate."""
        return self._paced(lane).waiting_worth

    def facts(self, lane: LaneView) -> dict[str, Any]:
        """For `workers.facts`: in flight, waiting, share in use, calls and 429s since the start."""
        return self._paced(lane).facts()

    def keep_found(self, lane: LaneView) -> dict[str, Any] | None:
        """For `lanes.learned["found"]`: the limit that was found by trying, if any was."""
        return self._paced(lane).finder.found.keep()

    async def counters(self, lane: LaneView) -> dict[str, Any] | None:
        """Hour and day counters for `lanes.counters`; None when there are none or Redis is away."""
        paced = self._paced(lane)
        return await paced.source.read_counters() if paced.has_windows else None

    @property
    def redis_calls(self) -> int:
        return self._steps.calls if self._steps else 0

    async def close(self) -> None:
        """Stop waiting; permits not used are returned, waiters are cancelled by their own tasks."""
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None
        for paced in self._lanes.values():
            await paced.close()

    def _paced(self, lane: LaneView) -> PacedLane:
        paced = self._lanes.get(lane.id)
        if paced is None:
            paced = self._lanes[lane.id] = PacedLane(
                lane.provider, lane.key_id, lane.model, self._steps, self._worker, self._clock, self.live_workers
            )
            paced.finder.found = Found.kept(lane.found)
        if paced.limits is not lane.limits:
            paced.set_limits(lane.limits, lane.key_limits, lane.counters)
        return paced

    def _sharing(self, paced: PacedLane, whole_key: bool) -> list[PacedLane]:
        if not whole_key:
            return [paced]
        return [other for other in self._lanes.values() if other.key_name == paced.key_name]

    async def _keep(self) -> None:
        """Once a second: keep concurrency shares alive, settle what no lease has carried."""
        while True:
            await self._clock.sleep_async(TICK_S)
            for paced in list(self._lanes.values()):
                await paced.keep()
