"""Cancel a batch: unsent lines stop, calls in flight may land, the rest become `batch_cancelled`.

Owns: what cancelling means in each state. May not touch: the files (finalize writes them once sealed).
Workers see the new status within a second and give back what they hold.
"""

from __future__ import annotations

from batch.domain.errors import Conflict
from batch.operations.end_batches import seal_batch_if_quiet
from batch.operations.read_batches import get_batch
from batch.operations.world import World
from batch.storage import batches
from batch.storage.batches import BatchRow


def cancel_batch(world: World, project_id: int, public_id: str) -> BatchRow:
    """The batch, now `cancelling` (or as it was, when it was cancelling or cancelled before).

    Raises NotFound; Conflict when it has ended otherwise or is past changing.
    """
    batch = get_batch(world, project_id, public_id)
    source = world.db.transact(batches.cancel_if_open, batch.id)
    batch = get_batch(world, project_id, public_id)
    if source is None:
        if batch.status in ("cancelling", "cancelled"):
            return batch
        raise Conflict(f"Cannot cancel a batch with status '{batch.status}'.")
    if source == "validating":
        world.bells.finalize(batch.id)
    else:
        seal_batch_if_quiet(world, batch.id)
    return batch
