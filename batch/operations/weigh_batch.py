"""Judge a file as a whole: too little, too much, too dear, too slow.

Owns: the refusals that need every line counted (empty file, unknown price under a budget, the project's
limits) and the warnings of a batch. May not touch: single lines. Serves ingest, at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from batch.domain.limits import Limits
from batch.operations.slicing import RouteLines
from batch.operations.warn_window import LaneLoad, forecast, window_warning
from batch.operations.world import World
from batch.storage import batches
from batch.storage.batches import BatchError, BatchRow
from batch.storage.ingest import Weight
from batch.storage.lanes import LaneRow
from batch.storage.projects import Project


def refuse_batch(
    world: World, batch: BatchRow, project: Project, lanes: Iterable[LaneRow], weight: Weight
) -> BatchError | None:
    """Why the batch may not start, if so."""
    if weight.lines == 0:
        message = "The input file is empty. Please ensure that the batch contains at least one request."
        return BatchError("empty_file", message, None, None)
    unpriced = missing_prices(world, lanes) if batch.budget_usd is not None else None
    if unpriced:
        return BatchError("price_unknown", unpriced, "options.budget_usd", None)
    return _over_limit(world, batch, project, weight)


def missing_prices(world: World, lanes: Iterable[LaneRow]) -> str | None:
    """Why a budget cannot hold on these lanes, if so."""
    known = world.catalog.providers
    unpriced = {
        f"{lane.provider} / {lane.model}": None
        for lane in lanes
        if lane.provider not in known or known[lane.provider].price(lane.model) is None
    }
    if not unpriced:
        return None
    return (
        f"A budget needs prices, and none is known for {', '.join(unpriced)}. "
        "Set `price` under [providers.NAME], or leave out budget_usd."
    )


def warn_batch(
    world: World,
    batch: BatchRow,
    groups: Mapping[int, RouteLines],
    routes: Sequence[Sequence[int]],
    lanes: Mapping[int, LaneRow],
    limits: Mapping[int, Limits],
) -> list[dict[str, Any]]:
    """`warnings` of the batch object: {"code", "message"} each."""
    loads = [
        LaneLoad(lane.provider, lane.model, limits.get(lane.id, Limits()), len(group.lines), group.total_tokens, 0)
        for number, group in groups.items()
        for lane in [lanes[routes[number][0]]]
    ]
    left_s = None if batch.expires_at is None else batch.expires_at / 1000 - world.clock.now()
    message = window_warning(forecast(loads), left_s)
    return [{"code": "window_too_short", "message": message}] if message else []


def _over_limit(world: World, batch: BatchRow, project: Project, weight: Weight) -> BatchError | None:
    allowed = project.limits
    if not allowed.get("enqueued_requests") and not allowed.get("enqueued_tokens"):
        return None
    with world.db.read() as conn:
        requests, tokens = batches.open_demand(conn, project.id, batch.id)
    for what, wanted in (
        ("request", requests + weight.accepted),
        ("token", tokens + weight.est_input + weight.est_output),
    ):
        limit = allowed.get(f"enqueued_{what}s")
        if limit and wanted > limit:
            message = (
                f"Enqueued {what} limit reached for project {project.name}. Limit: {limit:,} enqueued {what}s. "
                "Please try again once some in_progress batches have been completed."
            )
            return BatchError("token_limit_exceeded", message, None, None)
    return None
