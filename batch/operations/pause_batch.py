"""Pause and resume a batch, by a person. Budgets and failure shares pause in storage.results.

Owns: what may be raised on resuming. `paused` is a flag beside the status: clients see no new status.
May not touch: lanes (pause_provider). Workers see the flag within a second; calls in flight land.
"""

from __future__ import annotations

from sqlalchemy import Connection

from batch.domain.errors import Conflict, InvalidRequest, InvalidValue
from batch.operations.read_batches import get_batch
from batch.operations.weigh_batch import missing_prices
from batch.operations.world import World
from batch.storage import batches, webhooks
from batch.storage.batches import BatchRow
from batch.storage.lanes import get_lanes


def pause_batch(world: World, project_id: int, public_id: str) -> BatchRow:
    """Pausing twice is one pause. Raises NotFound; Conflict when the batch is ending or has ended."""
    batch = get_batch(world, project_id, public_id)

    def pause(conn: Connection) -> bool:
        is_paused = batches.pause_if_open(conn, batch.id, "person")
        if is_paused:
            webhooks.enqueue_event(conn, batch, "batch.paused")
        return is_paused

    if world.db.transact(pause):
        world.bells.deliver_webhooks()
    batch = get_batch(world, project_id, public_id)
    if not batch.paused:
        raise Conflict(f"Cannot pause a batch with status '{batch.status}'.")
    return batch


def resume_batch(
    world: World,
    project_id: int,
    public_id: str,
    *,
    budget_usd: float | None = None,
    max_failure_share: float | None = None,
) -> BatchRow:
    """Go on, with raised limits where given; a running batch only takes the limits.

    Raises NotFound; InvalidRequest when the budget is still spent or has no prices to count with; Conflict when the
    batch is ending or has ended.
    """
    _check_raise(budget_usd, max_failure_share)
    batch = get_batch(world, project_id, public_id)
    with world.db.read() as conn:
        lanes = get_lanes(conn, batches.lanes_of(conn, batch.id))
    if budget_usd is not None and batch.budget_usd is None:
        message = missing_prices(world, lanes)
        if message:
            raise InvalidRequest(message, param="budget_usd", code="price_unknown")

    is_open = world.db.transact(
        batches.resume_if_open, batch.id, budget_usd=budget_usd, max_failure_share=max_failure_share
    )
    batch = get_batch(world, project_id, public_id)
    if not is_open and (batch.sealed_at is not None or batch.status not in ("validating", "in_progress")):
        raise Conflict(f"Cannot resume a batch with status '{batch.status}'.")
    if not is_open:
        spent, budget = batch.cost_usd, budget_usd or batch.budget_usd or 0.0
        message = f"${spent:.4f} are spent of a budget of ${budget:.4f}. Raise budget_usd to go on."
        raise InvalidRequest(message, param="budget_usd")
    for lane in lanes:
        world.bells.drain(lane.id, lane.queue)
    return batch


def _check_raise(budget_usd: float | None, max_failure_share: float | None) -> None:
    if budget_usd is not None and not 0 < budget_usd < float("inf"):
        raise InvalidValue("Invalid 'budget_usd': expected a number above 0.", param="budget_usd")
    if max_failure_share is not None and not 0 < max_failure_share <= 1:
        message = "Invalid 'max_failure_share': expected a number above 0, at most 1."
        raise InvalidValue(message, param="max_failure_share")
