"""How much there is to do, counted for the metrics.

Owns: a handful of cheap reads over small row sets. May not touch: requests, results.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from batch.storage.engine import db_now
from batch.storage.tables import batch_lanes, batches, lanes, webhook_deliveries, workers

_LIVE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Load:
    """`lanes`: (provider, model, waiting lines, leased lines); `batches`: open ones by status."""

    lanes: list[tuple[str, str, int, int]]
    batches: dict[str, int]
    oldest_batch_s: float
    waiting_webhooks: int
    live_workers: int


def read_load(connection: sa.Connection) -> Load:
    work = connection.execute(
        sa.select(
            lanes.c.provider,
            lanes.c.model,
            sa.func.coalesce(sa.func.sum(batch_lanes.c.ready_lines), 0),
            sa.func.coalesce(sa.func.sum(batch_lanes.c.leased_lines), 0),
        )
        .join(batch_lanes, batch_lanes.c.lane_id == lanes.c.id)
        .group_by(lanes.c.provider, lanes.c.model)
    )
    open_batches = connection.execute(
        sa.select(batches.c.status, sa.func.count(), sa.func.min(batches.c.created_at), db_now())
        .where(batches.c.status.in_(("validating", "in_progress", "finalizing", "cancelling")))
        .group_by(batches.c.status)
    ).all()
    waiting = sa.select(sa.func.count()).where(webhook_deliveries.c.next_at.is_not(None))
    live = sa.select(sa.func.count()).where(workers.c.heartbeat_at > db_now() - _LIVE_MS)
    return Load(
        lanes=[(provider, model, int(ready), int(leased)) for provider, model, ready, leased in work],
        batches={status: count for status, count, _oldest, _now in open_batches},
        oldest_batch_s=max(((now - oldest) / 1000 for _s, _c, oldest, now in open_batches), default=0.0),
        waiting_webhooks=int(connection.execute(waiting).scalar_one()),
        live_workers=int(connection.execute(live).scalar_one()),
    )
