"""Webhook endpoints and the outbox of deliveries.

Owns: rows of `webhook_endpoints` and `webhook_deliveries`. An event is enqueued as one row without a
URL, in the transaction that makes it true; the delivery pass fans it out to one row per target.
A due row is leased by moving its `next_at`, so that two passes never send the same one at once.
May not touch: signatures, the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import sqlalchemy as sa

from batch.domain.errors import NotFound
from batch.domain.ids import new_id
from batch.storage.engine import db_now
from batch.storage.tables import batches, webhook_deliveries, webhook_endpoints

_UNADDRESSED = ""


def enqueue_event(connection: sa.Connection, batch_row: Any, event: str) -> None:
    """Put `event` ("batch.completed", ...) of a batch into the outbox, in the caller's transaction.

    `batch_row` is anything with id, public_id and project_id.
    """
    now = connection.execute(sa.select(db_now())).scalar_one()
    payload = event_payload(event, batch_row.public_id, now // 1000)
    connection.execute(
        sa.insert(webhook_deliveries).values(
            webhook_id=new_id("wh_"), project_id=batch_row.project_id, batch_id=batch_row.id, url=_UNADDRESSED,
            event=event, payload=payload, created_at=now, next_at=now,
        )
    )  # fmt: skip


def event_payload(event: str, batch_public_id: str, created_at: int) -> str:
    """The thin payload, exactly as it will be signed and sent. `created_at` in Unix seconds."""
    body = {
        "id": new_id("evt_"),
        "object": "event",
        "created_at": created_at,
        "type": event,
        "data": {"id": batch_public_id},
    }
    return orjson.dumps(body).decode()


def unaddressed_events(connection: sa.Connection, limit: int) -> Sequence[sa.Row[Any]]:
    """Events that stand for targets not yet known; with their batch's options."""
    return connection.execute(
        sa.select(webhook_deliveries, batches.c.options)
        .join(batches, batches.c.id == webhook_deliveries.c.batch_id, isouter=True)
        .where(webhook_deliveries.c.next_at.is_not(None), webhook_deliveries.c.url == _UNADDRESSED)
        .order_by(webhook_deliveries.c.id)
        .limit(limit)
    ).all()


def address_event(connection: sa.Connection, event: sa.Row[Any], targets: Mapping[str, int | None]) -> None:
    """Replace the event by one delivery per url (with its endpoint's id), unless another pass did it."""
    taken = connection.execute(
        sa.delete(webhook_deliveries).where(
            webhook_deliveries.c.id == event.id, webhook_deliveries.c.url == _UNADDRESSED
        )
    )
    rows = [
        {
            "webhook_id": new_id("wh_"), "project_id": event.project_id, "batch_id": event.batch_id,
            "endpoint_id": endpoint_id, "url": url, "event": event.event, "payload": event.payload,
            "created_at": event.created_at, "next_at": event.created_at,
        }
        for url, endpoint_id in targets.items()
    ]  # fmt: skip
    if taken.rowcount and rows:
        connection.execute(sa.insert(webhook_deliveries), rows)


def lease_due(connection: sa.Connection, limit: int, lease_ms: int) -> list[sa.Row[Any]]:
    """Deliveries whose time has come, taken for `lease_ms`; each with `now` and its endpoint's secrets."""
    due = (
        sa.select(webhook_deliveries.c.id)
        .where(webhook_deliveries.c.next_at <= db_now(), webhook_deliveries.c.url != _UNADDRESSED)
        .order_by(webhook_deliveries.c.next_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = list(connection.execute(due).scalars())
    if not ids:
        return []
    connection.execute(
        sa.update(webhook_deliveries)
        .where(webhook_deliveries.c.id.in_(ids))
        .values(next_at=db_now() + lease_ms, attempts=webhook_deliveries.c.attempts + 1)
    )
    return list(
        connection.execute(
            sa.select(
                webhook_deliveries,
                webhook_endpoints.c.id.label("live_endpoint_id"),
                webhook_endpoints.c.url.label("live_url"),
                webhook_endpoints.c.secret,
                webhook_endpoints.c.old_secret,
                webhook_endpoints.c.old_secret_until,
                db_now().label("now"),
            )
            .join(webhook_endpoints, webhook_endpoints.c.id == webhook_deliveries.c.endpoint_id, isouter=True)
            .where(webhook_deliveries.c.id.in_(ids))
            .order_by(webhook_deliveries.c.id)
        )
    )


def mark_delivered(connection: sa.Connection, delivery_id: int, status: int) -> None:
    connection.execute(
        sa.update(webhook_deliveries)
        .where(webhook_deliveries.c.id == delivery_id)
        .values(delivered_at=db_now(), next_at=None, last_status=status)
    )


def mark_failed(connection: sa.Connection, delivery_id: int, status: int | None, retry_in_ms: int | None) -> None:
    """`retry_in_ms` None gives up."""
    next_at = sa.null() if retry_in_ms is None else db_now() + retry_in_ms
    connection.execute(
        sa.update(webhook_deliveries)
        .where(webhook_deliveries.c.id == delivery_id, webhook_deliveries.c.delivered_at.is_(None))
        .values(next_at=next_at, last_status=status)
    )


def replay_delivery(connection: sa.Connection, webhook_id: str) -> bool:
    """Make a delivery due again, with a fresh 72 hours."""
    done = connection.execute(
        sa.update(webhook_deliveries)
        .where(webhook_deliveries.c.webhook_id == webhook_id, webhook_deliveries.c.url != _UNADDRESSED)
        .values(next_at=db_now(), created_at=db_now(), delivered_at=None, attempts=0)
    )
    return bool(done.rowcount)


def purge_finished(connection: sa.Connection, older_than_ms: int, limit: int = 500) -> int:
    """Delete deliveries that ended (delivered or given up) so long ago; the number deleted."""
    old = (
        sa.select(webhook_deliveries.c.id)
        .where(webhook_deliveries.c.next_at.is_(None), webhook_deliveries.c.created_at < db_now() - older_than_ms)
        .limit(limit)
    )
    return connection.execute(sa.delete(webhook_deliveries).where(webhook_deliveries.c.id.in_(old))).rowcount


# endpoints


def insert_endpoint(connection: sa.Connection, project_id: int, **values: Any) -> sa.Row[Any]:
    """With name, url, event_types and secret."""
    times = {"created_at": db_now(), "updated_at": db_now()}
    insert = sa.insert(webhook_endpoints).values(public_id=new_id("we_"), project_id=project_id, **times, **values)
    return connection.execute(insert.returning(*webhook_endpoints.c)).one()


def get_endpoint(connection: sa.Connection, project_id: int, public_id: str) -> sa.Row[Any]:
    """Raises NotFound, also for another project's."""
    row = connection.execute(
        sa.select(webhook_endpoints).where(
            webhook_endpoints.c.public_id == public_id, webhook_endpoints.c.project_id == project_id
        )
    ).one_or_none()
    if row is None:
        raise NotFound(f"No such webhook endpoint: {public_id}", param="id")
    return row


def list_endpoints(
    connection: sa.Connection, project_id: int, *, after: str | None, limit: int
) -> tuple[list[sa.Row[Any]], bool]:
    """Newest first, and whether there are more."""
    query = sa.select(webhook_endpoints).where(webhook_endpoints.c.project_id == project_id)
    if after is not None:
        query = query.where(webhook_endpoints.c.id < get_endpoint(connection, project_id, after).id)
    rows = list(connection.execute(query.order_by(webhook_endpoints.c.id.desc()).limit(limit + 1)))
    return rows[:limit], len(rows) > limit


def count_endpoints(connection: sa.Connection, project_id: int) -> int:
    query = sa.select(sa.func.count()).where(webhook_endpoints.c.project_id == project_id)
    return int(connection.execute(query).scalar_one())


def endpoints_for(connection: sa.Connection, project_id: int, event: str) -> list[tuple[str, int]]:
    """(url, id) of the project's endpoints that want `event`."""
    rows = connection.execute(
        sa.select(webhook_endpoints.c.url, webhook_endpoints.c.id, webhook_endpoints.c.event_types).where(
            webhook_endpoints.c.project_id == project_id
        )
    )
    return [(row.url, row.id) for row in rows if event in row.event_types]


def update_endpoint(
    connection: sa.Connection, project_id: int, public_id: str, values: Mapping[str, Any]
) -> sa.Row[Any]:
    """Change name, url, event_types, or the secrets. Raises NotFound."""
    before = get_endpoint(connection, project_id, public_id)
    if all(before._mapping[name] == value for name, value in values.items()):
        return before
    change = sa.update(webhook_endpoints).where(webhook_endpoints.c.id == before.id)
    change = change.values(**values, updated_at=db_now())
    return connection.execute(change.returning(*webhook_endpoints.c)).one()


def rotate_secret(
    connection: sa.Connection, project_id: int, public_id: str, secret: str, keep_old_ms: int | None
) -> sa.Row[Any]:
    """The old secret signs beside the new one for `keep_old_ms`; None ends it at once. Raises NotFound."""
    before = get_endpoint(connection, project_id, public_id)
    if before.secret == secret:  # done already, by a commit whose answer was lost
        return before
    now = connection.execute(sa.select(db_now())).scalar_one()
    old = (before.secret, now + keep_old_ms) if keep_old_ms else (None, None)
    values = {"secret": secret, "old_secret": old[0], "old_secret_until": old[1]}
    return update_endpoint(connection, project_id, public_id, values)


def delete_endpoint(connection: sa.Connection, project_id: int, public_id: str) -> None:
    """Its waiting deliveries end with it. Raises NotFound."""
    row = get_endpoint(connection, project_id, public_id)
    connection.execute(
        sa.update(webhook_deliveries).where(webhook_deliveries.c.endpoint_id == row.id).values(next_at=None)
    )
    connection.execute(sa.delete(webhook_endpoints).where(webhook_endpoints.c.id == row.id))
