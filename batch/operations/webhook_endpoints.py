"""Webhook endpoints of a project: made, changed, rotated, tried.

Owns: what may be asked of an endpoint, and the secret that is shown once.
May not touch: HTTP shapes (api.webhooks), the delivery pass.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from batch.domain.errors import InvalidRequest, InvalidValue
from batch.domain.ids import new_id
from batch.domain.signatures import make_secret, signature_headers
from batch.operations.deliver_webhooks import EVENTS
from batch.operations.webhook_targets import check_target, post_webhook
from batch.operations.world import World
from batch.storage import webhooks

MAX_ENDPOINTS = 100
_DAY_MS = 86_400_000


def create_endpoint(world: World, project_id: int, *, name: str, url: str, event_types: list[str]) -> sa.Row[Any]:
    """The new row, with its secret. Raises InvalidRequest."""
    _check(world, url=url, event_types=event_types)
    with world.db.write() as connection:
        if webhooks.count_endpoints(connection, project_id) >= MAX_ENDPOINTS:
            raise InvalidRequest(f"A project holds at most {MAX_ENDPOINTS} webhook endpoints.")
        wanted, secret = list(dict.fromkeys(event_types)), make_secret(world.clock.randbytes(32))
        return webhooks.insert_endpoint(connection, project_id, name=name, url=url, event_types=wanted, secret=secret)


def update_endpoint(world: World, project_id: int, public_id: str, changes: dict[str, Any]) -> sa.Row[Any]:
    """`changes` may hold name, url, event_types. Raises InvalidRequest, NotFound."""
    _check(world, url=changes.get("url"), event_types=changes.get("event_types"))
    return world.db.transact(webhooks.update_endpoint, project_id, public_id, changes)


def rotate_endpoint_secret(world: World, project_id: int, public_id: str, *, keep_old: bool) -> sa.Row[Any]:
    """A new secret; with `keep_old` deliveries carry both signatures for 24 hours. Raises NotFound."""
    secret = make_secret(world.clock.randbytes(32))
    return world.db.transact(webhooks.rotate_secret, project_id, public_id, secret, _DAY_MS if keep_old else None)


def try_endpoint(world: World, project_id: int, public_id: str, event: str) -> int:
    """Send one sample of `event` now; the endpoint's HTTP status. InvalidRequest when nothing answers."""
    _check(world, event_types=[event])
    with world.db.read() as connection:
        row = webhooks.get_endpoint(connection, project_id, public_id)
    now = int(world.clock.now())
    body = webhooks.event_payload(event, new_id("batch_"), now).encode()
    headers = signature_headers([row.secret], new_id("wh_"), now, body)
    answer = post_webhook(row.url, body, headers, allow_private=world.settings.webhook_allow_private)
    if answer.status is None:
        raise InvalidRequest(f"The webhook endpoint could not be called: {answer.reason}.", param="url")
    return answer.status


def _check(world: World, *, url: str | None = None, event_types: list[str] | None = None) -> None:
    if url is not None:
        check_target(url, allow_private=world.settings.webhook_allow_private)
    if event_types is not None and not event_types:
        raise InvalidRequest("event_types must name at least one event.", param="event_types")
    for event in event_types or ():
        if event not in EVENTS:
            supported = ", ".join(f"'{name}'" for name in EVENTS)
            raise InvalidValue(f"Invalid value: '{event}'. Supported values are: {supported}.", param="event_types")
