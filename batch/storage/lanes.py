"""Lanes: one rate-limit domain (provider, credential, model) each.

Owns: the rows of `lanes`: making, reading, pausing, what was learned. A pause stands here first and
is copied to Redis by the pacer.
May not touch: slices and batch_lanes (leases.py), Redis, provider settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from batch.storage.engine import db_in, db_now, insert_for
from batch.storage.packing import among
from batch.storage.tables import lanes

_FOR_EVER = 253_402_300_799_000  # the end of the year 9999


@dataclass(frozen=True, slots=True)
class LaneRow:
    """One lane. Times are milliseconds since the epoch; `succeeded_at` None: never had a success."""

    id: int
    provider: str
    key_id: str
    model: str
    queue: str
    paused_until: int | None
    pause_code: str | None
    pause_reason: str | None
    succeeded_at: int | None
    learned: dict[str, Any]
    counters: dict[str, Any]

    def is_paused(self, now_ms: int) -> bool:
        return self.paused_until is not None and self.paused_until > now_ms


LANE_COLUMNS = [lanes.c[name] for name in LaneRow.__slots__]


def ensure_lane(conn: sa.Connection, provider: str, key_id: str, model: str, queue: str = "calls") -> int:
    """The lane's id, made when missing. An existing lane keeps its row; its queue follows the caller's."""
    where = (lanes.c.provider == provider) & (lanes.c.key_id == key_id) & (lanes.c.model == model)
    row = conn.execute(sa.select(lanes.c.id, lanes.c.queue).where(where)).first()
    if row is None:
        insert = insert_for(conn, lanes)
        values = {"provider": provider, "key_id": key_id, "model": model, "queue": queue,
                  "learned": {}, "counters": {}, "created_at": db_now()}
        conn.execute(insert.values(values).on_conflict_do_nothing())
        row = conn.execute(sa.select(lanes.c.id, lanes.c.queue).where(where)).one()
    if row.queue != queue:
        conn.execute(sa.update(lanes).where(lanes.c.id == row.id).values(queue=queue))
    return int(row.id)


def get_lanes(conn: sa.Connection, ids: Iterable[int] | None = None) -> list[LaneRow]:
    """The lanes with these ids, or all, by id."""
    query = sa.select(*LANE_COLUMNS).order_by(lanes.c.id)
    if ids is not None:
        query = query.where(among(lanes.c.id, ids))
    return [LaneRow(*row) for row in conn.execute(query)]


def find_lanes(conn: sa.Connection, *, provider: str, key_id: str | None = None, model: str | None = None) -> list[int]:
    """Ids of a provider's lanes, of one credential or model where given."""
    query = sa.select(lanes.c.id).where(lanes.c.provider == provider).order_by(lanes.c.id)
    if key_id is not None:
        query = query.where(lanes.c.key_id == key_id)
    if model is not None:
        query = query.where(lanes.c.model == model)
    return [int(i) for i in conn.execute(query).scalars()]


def pause_lane(conn: sa.Connection, lane_ids: Iterable[int], seconds: float | None, code: str, reason: str) -> int:
    """Pause for `seconds` from the database's now (None: until resumed). A longer pause is never shortened.

    Returns how many lanes are now paused for this reason. `reason` is for people: no secrets, no bodies.
    """
    until = sa.literal(_FOR_EVER) if seconds is None else db_in(seconds)
    result = conn.execute(
        sa.update(lanes)
        .where(among(lanes.c.id, lane_ids))
        .where(lanes.c.paused_until.is_(None) | (lanes.c.paused_until <= until))
        .values(paused_until=until, pause_code=code, pause_reason=reason)
    )
    return result.rowcount


def resume_lane(conn: sa.Connection, lane_ids: Iterable[int]) -> int:
    """Lift any pause. Returns how many lanes were paused."""
    result = conn.execute(
        sa.update(lanes)
        .where(among(lanes.c.id, lane_ids), lanes.c.paused_until.is_not(None))
        .values(paused_until=None, pause_code=None, pause_reason=None)
    )
    return result.rowcount


def note_success(conn: sa.Connection, lane_ids: Iterable[int]) -> None:
    """Remember that these lanes answered once: from now on a 404 or 403 pauses instead of failing lines."""
    conn.execute(
        sa.update(lanes)
        .where(among(lanes.c.id, lane_ids), lanes.c.succeeded_at.is_(None))
        .values(succeeded_at=db_now())
    )


def merge_facts(
    conn: sa.Connection, lane_id: int, name: Literal["learned", "counters"], patch: Mapping[str, Any]
) -> None:
    """Merge `patch` into what was learned of the lane, or into its hour and day counters (to re-seed Redis), one
    level deep; a None removes the key. In a write()."""
    column = lanes.c[name]
    held = conn.execute(sa.select(column).where(lanes.c.id == lane_id).with_for_update(key_share=True)).scalar_one()
    merged = {key: value for key, value in {**held, **patch}.items() if value is not None}
    if merged != held:
        conn.execute(sa.update(lanes).where(lanes.c.id == lane_id).values({name: merged}))
