"""End batches that were cancelled or ran out of time: seal them once quiet, and ring finalize.

Owns: when a batch may be sealed without all its results, and the search for jobs that nobody does.
May not touch: slices that a worker still holds within the grace time. Called by cancel and by sweeps.
"""

from __future__ import annotations

from batch.operations.world import World
from batch.storage import batches, jobs
from batch.storage.jobs import Job

STUCK_AFTER_S = 15.0  # a bell arrives within a second; what still waits then was lost
_PER_PASS = 200


def seal_batch_if_quiet(world: World, batch_id: int) -> bool:
    """Seal a cancelling or overdue batch that no worker holds lines of (or whose grace time is over)."""
    is_sealed = world.db.transact(batches.seal_if_quiet, batch_id, world.settings.cancel_grace_s)
    if is_sealed:
        world.bells.finalize(batch_id)
    return is_sealed


def end_due_batches(world: World) -> int:
    """One pass over cancelling and overdue batches; returns how many were sealed. For a sweep, every second or so."""
    with world.db.read() as conn:
        due = jobs.unsealed_endings(conn, _PER_PASS)
    return sum(seal_batch_if_quiet(world, batch_id) for batch_id in due)


def ring_waiting(world: World, job: Job) -> int:
    """Ring for batches whose ingest or finalize nobody does: a lost bell or a dead holder. Returns how many."""
    with world.db.read() as conn:
        waiting = jobs.waiting_jobs(conn, job, idle_s=STUCK_AFTER_S, limit=_PER_PASS)
    for batch_id in waiting:
        (world.bells.ingest if job is Job.INGEST else world.bells.finalize)(batch_id)
    return len(waiting)
