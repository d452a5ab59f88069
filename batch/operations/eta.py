"""How fast a batch runs, when it will be done, and why it stands still, in words.

Owns: Pace (rate, ETA: null when unknown), RateBook (what this process saw of each batch lately) and
explain_standstill. May not touch: rows; callers read them. Rates are lines per second.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batch.operations.warn_window import duration
from batch.storage.batches import BatchRow
from batch.storage.explain import HeldLines, LaneWork
from batch.storage.workers import WorkerRow

LOOK_BACK_S = 60.0
ENOUGH_LINES = 20  # fewer make a rate that jumps by more than a twentieth with each line
SHORTEST_SPAN_S = 4.0
MEAN_AFTER_S = 10.0  # before, the mean since the start would mostly tell of the start
STALE_S = 120.0
LOOKS_KEPT = 240
BATCHES_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Pace:
    """`rate_per_s` None: not known yet. `eta_s` None: unknown, or the batch stands still."""

    rate_per_s: float | None
    eta_s: float | None


class RateBook:
    """Counts of done lines as this process saw them: the rate of the last minute, or of the last 20 lines."""

    def __init__(self) -> None:
        self._seen: OrderedDict[int, deque[tuple[float, int]]] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, batch_id: int, now: float, done: int) -> float | None:
        """Remember a look; lines per second, None while too little was seen to say. `now` is in seconds."""
        with self._lock:
            looks = self._seen.setdefault(batch_id, deque())
            self._seen.move_to_end(batch_id)
            while len(self._seen) > BATCHES_KEPT:
                self._seen.popitem(last=False)
            if done == 0 or (looks and (done < looks[-1][1] or now - looks[-1][0] > STALE_S)):
                looks.clear()  # the time before the first answer is no part of the rate
            if not looks or now > looks[-1][0]:
                looks.append((now, done))
            while len(looks) > 2 and now - looks[1][0] >= LOOK_BACK_S and done - looks[1][1] >= ENOUGH_LINES:
                looks.popleft()
            if len(looks) > LOOKS_KEPT:  # a slow batch that is asked about often
                self._seen[batch_id] = deque(list(looks)[::2])
            since, before = looks[0]
            is_enough = done - before >= ENOUGH_LINES and now - since >= SHORTEST_SPAN_S
            return (done - before) / (now - since) if is_enough else None


def measure_pace(
    *, now: float, started_at: float | None, done: int, total: int, recent: float | None, stands_still: bool
) -> Pace:
    """The recent rate where one was seen, else the mean since the start; times are Unix seconds."""
    if started_at is None or total <= 0:
        return Pace(None, None)
    if done >= total:
        return Pace(recent, 0.0)
    if stands_still:
        return Pace(0.0, None)
    elapsed = now - started_at
    rate = recent
    if rate is None and done > 0 and elapsed >= MEAN_AFTER_S:
        rate = done / elapsed
    if rate is None or rate <= 0:
        return Pace(rate, None)
    return Pace(rate, (total - done) / rate)


def explain_standstill(
    batch: BatchRow,
    work: Sequence[LaneWork],
    live: Sequence[WorkerRow],
    now_ms: int,
    held: HeldLines | None = None,
) -> str | None:
    """Sentences when no line of the batch can be called now for a reason that no pause shows; None otherwise.

    `work` is storage.explain.lane_work, `live` storage.workers.live_workers.
    """
    if batch.status in {"completed", "failed", "expired", "cancelled"} or batch.paused:
        return None
    if not live:
        return "No worker is running; start one: batchmill up."
    if batch.status in {"validating", "finalizing", "cancelling"}:
        return _waits_for_job(batch, live)
    running = [lane for lane in work if not lane.is_paused(now_ms)]
    reasons = [_lane_reason(lane, live) for lane in running]
    if reasons and all(reasons):
        return " ".join(dict.fromkeys(reason for reason in reasons if reason))
    if held is not None and held.held and not held.ready and not any(lane.leased_lines for lane in work):
        wait = max(0, (held.earliest or now_ms) - now_ms) / 1000
        return f"All {held.held:,} waiting lines wait for their time; the first goes on in {duration(wait)}."
    return None


def lane_facts(live: Iterable[WorkerRow], lane_id: int) -> list[Mapping[str, Any]]:
    """What each worker says of the lane: `workers.facts["lanes"][id]`, as workers/ writes it."""
    found: list[Mapping[str, Any]] = []
    for worker in live:
        lanes = worker.facts.get("lanes")
        facts = lanes.get(str(lane_id)) if isinstance(lanes, dict) else None
        if isinstance(facts, dict):
            found.append(facts)
    return found


def _waits_for_job(batch: BatchRow, live: Sequence[WorkerRow]) -> str | None:
    if any("jobs" in worker.queues for worker in live):
        return None
    return f"It is {batch.status}, but no running worker serves the queue jobs; start one: batchmill up."


def _lane_reason(lane: LaneWork, live: Sequence[WorkerRow]) -> str | None:
    """Why no worker calls this provider's model just now; None when one may."""
    name = f"{lane.provider} / {lane.model}"
    serving = [worker for worker in live if lane.queue in worker.queues]
    if not serving:
        return f"No running worker serves the queue {lane.queue} of {name}."
    if all(lane.id in worker.facts.get("unserved", ()) for worker in serving):
        return f"No running worker is configured for {lane.provider} with the key {lane.key_id}."
    facts = lane_facts(live, lane.id)
    if not facts:
        return None
    if all(fact.get("is_down") for fact in facts):
        soonest = min(float(fact.get("retry_in_s") or 0.0) for fact in facts)
        return f"{name} does not answer; one line tries again in {duration(soonest)}, the others wait."
    held_s = min(float(fact.get("held_s") or 0.0) for fact in facts)
    if held_s > 0:
        return f"{name} answered 429 and asked to wait; it goes on in {duration(held_s)}."
    return None
