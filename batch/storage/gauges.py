"""How much there is to do, for /metrics: the gauges that the database knows.

Owns: a handful of cheap reads over small row sets, and the fresh setting of each gauge; a lane without rows is
not shown. May not touch: requests, results.
"""

from __future__ import annotations

import sqlalchemy as sa

from batch import telemetry
from batch.domain.states import OPEN
from batch.storage.engine import db_now
from batch.storage.tables import batch_lanes, batches, lanes, webhook_deliveries, workers

_LIVE_MS = 60_000


def measure_load(connection: sa.Connection) -> None:
    """Read once, set every gauge."""
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
    telemetry.WAITING_LINES.clear()
    telemetry.LEASED_LINES.clear()
    for provider, model, waiting, leased in work:
        telemetry.WAITING_LINES.labels(provider, model).set(int(waiting))
        telemetry.LEASED_LINES.labels(provider, model).set(int(leased))
    found = connection.execute(
        sa.select(batches.c.status, sa.func.count(), sa.func.min(batches.c.created_at), db_now())
        .where(batches.c.status.in_(OPEN))
        .group_by(batches.c.status)
    ).all()
    counts = {status: count for status, count, _oldest, _now in found}
    for status in OPEN:
        telemetry.OPEN_BATCHES.labels(status).set(counts.get(status, 0))
    telemetry.QUEUE_AGE.set(max(((now - oldest) / 1000 for _s, _c, oldest, now in found), default=0.0))
    pending = sa.select(sa.func.count()).where(webhook_deliveries.c.next_at.is_not(None))
    telemetry.PENDING_WEBHOOKS.set(connection.execute(pending).scalar_one())
    live = sa.select(sa.func.count()).where(workers.c.heartbeat_at > db_now() - _LIVE_MS)
    telemetry.LIVE_WORKERS.set(connection.execute(live).scalar_one())
