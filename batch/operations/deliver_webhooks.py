"""Deliver what stands in the webhook outbox: one bounded pass.

Owns: who gets an event, the signature, the back-off (5 s doubling to 6 h, for 72 h), giving up.
Each retry is signed anew with a fresh timestamp and the same webhook-id; delivery is at least once.
May not touch: the connection itself (operations.webhook_targets).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from batch.domain.errors import NotFound
from batch.domain.signatures import signature_headers
from batch.operations.webhook_targets import Answer, post_webhook
from batch.operations.world import World
from batch.storage import webhooks
from batch.telemetry import emit

EVENTS = ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled", "batch.paused")
GIVE_UP_AFTER_MS = 72 * 3_600_000
KEEP_FINISHED_MS = 30 * 86_400_000
_LEASE_MS = 60_000
_PASS_ROWS = 64
_PARALLEL = 8
_MAX_BACKOFF_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What one pass did; `more` says that another pass has work at once."""

    delivered: int = 0
    failed: int = 0
    given_up: int = 0
    more: bool = False


def deliver_webhooks(world: World) -> DeliveryReport:
    """Fan out new events, send what is due, write down what came of it."""
    fanned = world.db.transact(_address_events, world)
    due = world.db.transact(webhooks.lease_due, _PASS_ROWS, _LEASE_MS)
    if not due:
        world.db.transact(webhooks.purge_finished, KEEP_FINISHED_MS)
        return DeliveryReport(more=fanned == _PASS_ROWS)
    with ThreadPoolExecutor(min(_PARALLEL, len(due)), thread_name_prefix="webhook") as pool:
        ends = list(pool.map(lambda row: _deliver(world, row), due))
    return DeliveryReport(
        ends.count("delivered"), ends.count("failed"), ends.count("given_up"), more=len(due) == _PASS_ROWS
    )


def replay_webhook(world: World, webhook_id: str) -> None:
    """One delivery, also one that was given up, is due again now, with a fresh 72 hours. Raises NotFound."""
    if not world.db.transact(webhooks.replay_delivery, webhook_id):
        raise NotFound(f"No webhook delivery with id '{webhook_id}'.")
    world.bells.deliver_webhooks()


def _address_events(connection: Connection, world: World) -> int:
    events = webhooks.unaddressed_events(connection, _PASS_ROWS)
    for event in events:
        targets: dict[str, int | None] = dict.fromkeys(world.settings.webhook_urls)
        own = (event.options or {}).get("webhook_url")
        if own:
            targets[own] = None
        targets.update(webhooks.endpoints_for(connection, event.project_id, event.event))
        webhooks.address_event(connection, event, targets)
    return len(events)


def _deliver(world: World, row: Any) -> str:
    body = row.payload.encode()
    if row.endpoint_id is not None and row.live_endpoint_id is None:
        answer = Answer(None, "the endpoint was deleted")
    else:
        headers = signature_headers(_secrets(world, row), row.webhook_id, int(world.clock.now()), body)
        answer = post_webhook(
            row.live_url or row.url, body, headers, allow_private=world.settings.webhook_allow_private
        )
    return world.db.transact(_record, world, row, answer)


def _secrets(world: World, row: Any) -> list[str]:
    if row.endpoint_id is None:
        secret = world.settings.webhook_secret
        return [secret.get_secret_value()] if secret else []
    old_holds = row.old_secret and (row.old_secret_until or 0) > row.now
    return [row.secret, row.old_secret] if old_holds else [row.secret]


def _record(connection: Connection, world: World, row: Any, answer: Answer) -> str:
    if answer.is_success:
        webhooks.mark_delivered(connection, row.id, answer.status or 200)
        end = "delivered"
    else:
        wait_ms = backoff_ms(row.attempts, world.clock.uniform(0.8, 1.2))
        ended = row.now + wait_ms > row.created_at + GIVE_UP_AFTER_MS or (
            row.endpoint_id is not None and row.live_endpoint_id is None
        )
        webhooks.mark_failed(connection, row.id, answer.status, None if ended else wait_ms)
        end = "given_up" if ended else "failed"
    emit(f"webhook_{end}", event_type=row.event, webhook_id=row.webhook_id, attempts=row.attempts, reason=answer.reason)
    return end


def backoff_ms(attempts: int, jitter: float) -> int:
    """5 s after the first attempt, doubling, at most 6 h; `jitter` multiplies."""
    return int(min(_MAX_BACKOFF_S, 5.0 * 2 ** min(attempts - 1, 20)) * jitter * 1000)
