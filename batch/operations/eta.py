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

from batch.storage.batches import BatchRow
from batch.storage.explain import LaneWork
from batch.storage.standing import HeldLines
from batch.storage.workers import WorkerRow

LOOK_BACK_S = 60.0      # the current rate is that of the last minute
SHORTEST_SPAN_S = 10.0  # two looks nearer than this say nothing
STALE_S = 120.0
BATCHES_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Pace:
    """`rate_per_s` None: not known yet. `eta_s` None: unknown, or the batch stands still."""

    rate_per_s: float | None
    eta_s: float | None


class RateBook:
    """Counts of done lines as this process saw them; the rate of the last minute, once there are two looks."""

    def __init__(self) -> None:
        self._seen: OrderedDict[int, deque[tuple[float, int]]] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, batch_id: int, now: float, done: int) -> float | None:
        """Remember a look; lines per second over the last minute, None before there are two looks apart."""
        with self._lock:
            looks = self._seen.setdefault(batch_id, deque(maxlen=256))
            self._seen.move_to_end(batch_id)
            while len(self._seen) > BATCHES_KEPT:
                self._seen.popitem(last=False)
            if looks and (done < looks[-1][1] or now - looks[-1][0] > STALE_S):
                looks.clear()
            if not looks or now > looks[-1][0]:
                looks.append((now, done))
            while len(looks) > 2 and now - looks[1][0] >= LOOK_BACK_S:
                looks.popleft()
            since, before = looks[0]
            return (done - before) / (now - since) if now - since >= SHORTEST_SPAN_S else None


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
    if rate is None and done > 0 and elapsed >= 1.0:
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
    """One or more sentences when no line of the batch can be called now; None while some can.

    `work` is storage.explain.work_of_batch, `live` storage.workers.live_workers.
    """
    if batch.status in {"completed", "failed", "expired", "cancelled"}:
        return None
    if batch.paused:
        return _paused_batch(batch)
    if not live:
        return "No worker is running; start one: batchmill up."
    if batch.status in {"validating", "finalizing", "cancelling"}:
        return _waits_for_job(batch, live, now_ms)
    reasons = [_lane_reason(lane, live, now_ms) for lane in work]
    if reasons and all(reasons):
        return " ".join(dict.fromkeys(reason for reason in reasons if reason))
    if held is not None and held.held and not held.ready and not any(lane.leased_lines for lane in work):
        wait = max(0, (held.earliest or now_ms) - now_ms) / 1000
        return f"All {held.held:,} waiting lines wait for their time; the first goes on in {_span(wait)}."
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


def _paused_batch(batch: BatchRow) -> str:
    known = {
        "person": f"Paused by a person; batchmill admin resume {batch.public_id} continues it.",
        "budget": "Paused: its budget (budget_usd) is used up.",
        "failures": "Paused: more lines failed than max_failure_share allows.",
    }
    return known.get(batch.pause_reason or "person", f"Paused: {batch.pause_reason}")


def _waits_for_job(batch: BatchRow, live: Sequence[WorkerRow], now_ms: int) -> str | None:
    if any("jobs" in worker.queues for worker in live):
        return None
    return f"It is {batch.status}, but no running worker serves the queue jobs; start one: batchmill up."


def _lane_reason(lane: LaneWork, live: Sequence[WorkerRow], now_ms: int) -> str | None:
    name = f"{lane.provider} / {lane.model}"
    if lane.is_paused(now_ms) and lane.paused_until is not None:
        left = (lane.paused_until - now_ms) / 1000
        probed = lane.pause_code in {"bad_key", "forbidden", "model_not_found"}
        again = "Tried again every 60 s." if probed else f"It goes on in {_span(left)}."
        if left > 400 * 86_400:
            again = f"batchmill admin resume {lane.provider} continues it."
        return f"{name} is paused: {lane.pause_reason or lane.pause_code}. No line failed by it. {again}"
    if not any(lane.queue in worker.queues for worker in live):
        return f"No running worker serves the queue {lane.queue} of {name}."
    facts = lane_facts(live, lane.lane_id)
    if facts and all(fact.get("is_down") for fact in facts):
        soonest = min(float(fact.get("retry_in_s") or 0.0) for fact in facts)
        return f"{name} does not answer; one line tries again in {_span(soonest)}, the others wait."
    return None


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5_400:
        return f"{round(seconds / 60)} min"
    if seconds < 172_800:
        return f"{round(seconds / 3_600)} h"
    return f"{round(seconds / 86_400)} days"
