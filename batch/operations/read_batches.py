"""Read batches: one, a page, its errors.

Owns: NotFound for what is not the project's. May not touch: the shape that HTTP shows (api/batches).
"""

from __future__ import annotations

from batch.domain.errors import InvalidRequest, NotFound
from batch.operations.world import World
from batch.storage import batches
from batch.storage.batches import BatchError, BatchRow


def get_batch(world: World, project_id: int, public_id: str) -> BatchRow:
    """Raises NotFound."""
    with world.db.read() as conn:
        batch = batches.find_batch(conn, project_id, public_id)
    if batch is None:
        raise NotFound(f"No batch found with id '{public_id}'.", param="id")
    return batch


def list_batches(
    world: World, project_id: int, *, limit: int = 20, after: str | None = None
) -> tuple[list[BatchRow], bool]:
    """A page, newest first, and whether there is more. Raises InvalidRequest for a wrong cursor."""
    with world.db.read() as conn:
        mark = batches.find_batch(conn, project_id, after) if after else None
        if after and mark is None:
            raise InvalidRequest(f"No batch found with id '{after}'.", param="after")
        rows = batches.page_batches(conn, project_id, limit=limit + 1, after=mark.id if mark else None)
    return rows[:limit], len(rows) > limit


def get_batch_errors(world: World, batch_ids: list[int]) -> dict[int, list[BatchError]]:
    """The `errors.data` of each batch that has any; keys are internal ids."""
    with world.db.read() as conn:
        return batches.errors_of(conn, batch_ids)
