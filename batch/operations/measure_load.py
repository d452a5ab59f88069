"""Measure the load: the gauges that the database knows, for whoever serves /metrics.

Owns: the fresh setting of each gauge; a lane without rows is not shown.
"""

from __future__ import annotations

from batch import telemetry
from batch.operations.world import World
from batch.storage.gauges import read_load


def measure_load(world: World) -> None:
    """Read once, set every gauge."""
    with world.db.read() as connection:
        load = read_load(connection)
    telemetry.WAITING_LINES.clear()
    telemetry.LEASED_LINES.clear()
    for provider, model, waiting, leased in load.lanes:
        telemetry.WAITING_LINES.labels(provider, model).set(waiting)
        telemetry.LEASED_LINES.labels(provider, model).set(leased)
    for status in ("validating", "in_progress", "finalizing", "cancelling"):
        telemetry.OPEN_BATCHES.labels(status).set(load.batches.get(status, 0))
    telemetry.QUEUE_AGE.set(load.oldest_batch_s)
    telemetry.PENDING_WEBHOOKS.set(load.waiting_webhooks)
    telemetry.LIVE_WORKERS.set(load.live_workers)
