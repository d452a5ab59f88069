"""Explain a batch: why it stands where it stands, in facts that `status` words for people.

Owns: the shape of the explanation (explain_batch's docstring) and the mend for each kind of pause.
May not touch: rows; it only reads. `batchmill status` and `run` print it, GET …/explanation serves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batch.domain.errors import NotFound
from batch.domain.states import is_terminal
from batch.operations.eta import Pace, explain_standstill, lane_facts, measure_pace
from batch.operations.world import World
from batch.storage import batches, explain, files
from batch.storage.batches import BatchRow
from batch.storage.explain import LaneWork, held_lines
from batch.storage.workers import WorkerRow, live_workers

_MAX_ERRORS = 20


def explain_batch(world: World, project_id: int, public_id: str) -> dict[str, Any]:
    """Everything that tells a person how a batch fares. Times are Unix seconds, money is US dollars.

    {id, file, status, paused, pause_reason, counts: {total, completed, failed, waiting, cancelled, expired},
    lanes: [{provider, model, ready, leased, in_flight, paused: null | {until, code, reason, mend}}],
    failures: [{code, count, lines}], errors: [{code, message, param, line}], error_count, answers: report counts,
    usage: {input_tokens, output_tokens, billed_…}, cost_usd, unpriced_lines, budget_usd, created_at, started_at,
    ended_at, expires_at, warnings, parent, output_file_id, error_file_id, idle: null | sentence, rate_per_s, eta_s:
    null when unknown}. Raises NotFound.
    """
    with world.db.read() as conn:
        row = batches.find_batch(conn, project_id, public_id)
        if row is None:
            raise NotFound(f"No batch found with id '{public_id}'.", param="batch_id")
        now_ms = world.db.now(conn)
        source = files.find_file(conn, project_id, row.input_file)
        work = [] if is_terminal(row.status) else explain.lane_work(conn, row.id)
        failures = explain.failures_of_batch(conn, row.id) if row.failed else []
        errors = batches.errors_of(conn, [row.id]).get(row.id, [])
        live, held = live_workers(conn), held_lines(conn, row.id)
    idle = explain_standstill(row, work, live, now_ms, held)
    pace = _pace(world, row, now_ms, idle is not None or _is_paused(row, work, now_ms))
    return {
        "id": row.public_id,
        "file": source.filename if source else row.input_file,
        "status": row.status,
        "paused": row.paused,
        "pause_reason": row.pause_reason,
        "counts": count_lines(row),
        "lanes": [describe_lane(lane, live, now_ms) for lane in work],
        "failures": failures,
        "errors": [error._asdict() for error in errors[:_MAX_ERRORS]],
        "error_count": len(errors),
        "answers": row.report,
        **_money(row),
        "now": now_ms / 1000,
        "created_at": row.created_at / 1000,
        "started_at": _seconds(row.in_progress_at),
        "ended_at": _seconds(row.completed_at or row.failed_at or row.expired_at or row.cancelled_at),
        "expires_at": _seconds(row.expires_at),
        "warnings": row.warnings,
        "parent": row.parent,
        "output_file_id": row.output_file,
        "error_file_id": row.error_file,
        "idle": idle,
        "rate_per_s": pace.rate_per_s,
        "eta_s": pace.eta_s,
    }


def count_lines(row: BatchRow) -> dict[str, int]:
    """Completed, failed and the rest by what became of it; they add up to total."""
    rest = row.total - row.completed - row.failed
    ended = {"cancelled": "cancelled", "expired": "expired"}.get(row.status, "waiting")
    counts = {"total": row.total, "completed": row.completed, "failed": row.failed}
    return counts | {name: rest if name == ended else 0 for name in ("waiting", "cancelled", "expired")}


def describe_lane(lane: LaneWork, live: Sequence[WorkerRow], now_ms: int) -> dict[str, Any]:
    """`ready` and `leased` are this batch's lines, `in_flight` calls of all batches as the workers last said."""
    paused = None
    if lane.is_paused(now_ms) and lane.paused_until is not None:
        for_ever = lane.paused_until - now_ms > 400 * 86_400_000
        paused = {
            "until": None if for_ever else lane.paused_until / 1000,
            "code": lane.pause_code,
            "reason": lane.pause_reason,
            "mend": mend_for(lane.pause_code, lane.key_id, lane.provider),
        }
    return {
        "provider": lane.provider,
        "model": lane.model,
        "ready": lane.ready_lines,
        "leased": lane.leased_lines,
        "in_flight": sum(int(fact.get("in_flight") or 0) for fact in lane_facts(live, lane.id)),
        "paused": paused,
    }


def mend_for(code: str | None, key_id: str, provider: str) -> str | None:
    """What a person can do about a pause; None when it passes by itself."""
    kind, _, place = key_id.partition(":")
    key = f"mend the file {place}" if kind == "file" else f"restart the workers with a new {place or 'key'}"
    if code in {"bad_key", "missing_key"}:
        return f"{key}; the file is read again at each try" if kind == "file" else key
    if code in {"quota", "budget"}:
        return f"raise the limit or pay the bill at {provider}; it is tried again by itself"
    if code in {"forbidden", "model_not_found"}:
        return f"check at {provider} that this key may use the model; or cancel and name another model"
    if code == "person":
        return f"batchmill admin resume {provider}"
    return None


def _is_paused(row: BatchRow, work: Sequence[LaneWork], now_ms: int) -> bool:
    return row.paused or (bool(work) and all(lane.is_paused(now_ms) for lane in work))


def _pace(world: World, row: BatchRow, now_ms: int, stands_still: bool) -> Pace:
    if row.status != "in_progress":
        return Pace(None, None)
    done = row.completed + row.failed
    recent = world.rates.note(row.id, now_ms / 1000, done)
    return measure_pace(
        now=now_ms / 1000, started_at=_seconds(row.in_progress_at), done=done, total=row.total, recent=recent,
        stands_still=stands_still,
    )  # fmt: skip


def _money(row: BatchRow) -> dict[str, Any]:
    return {
        "usage": {
            "input_tokens": row.input_tokens,
            "output_tokens": row.output_tokens,
            "billed_input_tokens": row.billed_input_tokens,
            "billed_output_tokens": row.billed_output_tokens,
            "estimated_input_tokens": row.est_input_tokens,
            "estimated_output_tokens": row.est_output_tokens,
        },
        "cost_usd": row.known_cost_usd,
        "unpriced_lines": row.unpriced,
        "budget_usd": row.budget_usd,
    }


def _seconds(millis: int | None) -> float | None:
    return None if millis is None else millis / 1000
