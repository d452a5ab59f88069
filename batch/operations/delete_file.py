"""Delete a file: it is gone for its owner at once, its bytes go when no running batch needs them.

Owns: the mark. May not touch: bytes (operations.retention removes them in passes).
"""

from __future__ import annotations

from batch.domain.errors import NotFound
from batch.operations.world import World
from batch.storage import files


def delete_file(world: World, project_id: int, public_id: str) -> None:
    """Raises NotFound when there is no such file, or no longer."""
    if not world.db.transact(files.mark_deleted_if_live, project_id, public_id):
        raise NotFound(f"No such File object: {public_id}", param="id")
