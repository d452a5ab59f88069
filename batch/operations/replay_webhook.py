"""Replay one webhook delivery, also one that was given up: due again now, with a fresh 72 hours.

Owns: NotFound for an unknown webhook-id. May not touch: the sending (deliver_webhooks).
"""

from __future__ import annotations

from batch.domain.errors import NotFound
from batch.operations.world import World
from batch.storage import webhooks


def replay_webhook(world: World, webhook_id: str) -> None:
    """Raises NotFound."""
    if not world.db.transact(webhooks.replay_delivery, webhook_id):
        raise NotFound(f"No webhook delivery with id '{webhook_id}'.")
    world.bells.deliver_webhooks()
