"""Celery's door, thin: five tasks that only pass on what was rung.

Owns: the tasks' names and arguments (ids). No retry, no countdown, no result: the database decides.
"""

from __future__ import annotations

from batch.operations.bells import TASK_DELIVER_WEBHOOKS, TASK_DRAIN, TASK_FINALIZE, TASK_INGEST, TASK_SWEEP
from workers.app import app
from workers.process import current


@app.task(name=TASK_DRAIN)  # type: ignore[untyped-decorator]
def drain(lane_id: int) -> None:
    """There may be work in this lane: returns in microseconds."""
    current().ring(lane_id)


@app.task(name=TASK_INGEST)  # type: ignore[untyped-decorator]
def ingest(batch_id: int) -> None:
    """Read and check a batch's file."""
    current().jobs.ingest(batch_id)


@app.task(name=TASK_FINALIZE)  # type: ignore[untyped-decorator]
def finalize(batch_id: int) -> None:
    """Write a sealed batch's files."""
    current().jobs.finalize(batch_id)


@app.task(name=TASK_SWEEP)  # type: ignore[untyped-decorator]
def sweep(name: str) -> None:
    """Run one sweep, if it is due."""
    current().jobs.sweep(name)


@app.task(name=TASK_DELIVER_WEBHOOKS)  # type: ignore[untyped-decorator]
def deliver_webhooks() -> None:
    """Send what stands in the outbox."""
    current().jobs.sweep("deliver_webhooks", now=True)
