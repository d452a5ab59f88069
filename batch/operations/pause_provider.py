"""Pause a provider by hand, or lift its pauses: all its models or one.

Owns: the pause of a person (code "person"), which never ends by itself.
May not touch: Redis; each pump reads pauses from the database within seconds.
"""

from __future__ import annotations

from sqlalchemy import Connection

from batch.domain.errors import NotFound
from batch.operations.world import World
from batch.storage import lanes


def pause_provider(world: World, provider: str, *, model: str | None = None) -> int:
    """How many of its models are paused now. Raises NotFound when it was never used."""
    with world.db.write() as conn:
        return lanes.pause_lane(conn, _lanes_of(world, conn, provider, model), None, "person", "paused by a person")


def resume_provider(world: World, provider: str, *, model: str | None = None) -> int:
    """How many pauses were lifted, whatever their reason. Raises NotFound when it was never used."""
    with world.db.write() as conn:
        lifted = lanes.resume_lane(conn, ids := _lanes_of(world, conn, provider, model))
        rows = lanes.get_lanes(conn, ids)
    for row in rows:
        world.bells.drain(row.id, row.queue)
    return lifted


def _lanes_of(world: World, conn: Connection, provider: str, model: str | None) -> list[int]:
    ids = lanes.find_lanes(conn, provider=provider, model=model)
    if not ids:
        known = ", ".join(world.catalog.providers) or "none"
        place = f"{provider} / {model}" if model else provider
        raise NotFound(f"{place} has served no batch here yet, so there is nothing to pause (configured: {known})")
    return ids
