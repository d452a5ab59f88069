"""Is the service ready: do the database, the broker and the file store answer?

Owns: one short question to each. May not touch: what anything contains.
"""

from __future__ import annotations

from collections.abc import Callable

import redis

from batch.operations.world import World
from batch.storage.migrate import pending

OK = "ok"


def check_ready(world: World) -> dict[str, str]:
    """For database, broker and files: "ok", or what is wrong in a few words without addresses."""
    return {
        "database": _ask(lambda: _ask_database(world)),
        "broker": _ask(lambda: _ask_broker(world)),
        "files": _ask(lambda: world.blobs.check()),
    }


def _ask(question: Callable[[], object]) -> str:
    try:
        question()
    except _Pending:
        return "migrations are pending: batchmill admin migrate"
    except Exception as error:  # the wall of readiness: whatever is wrong is the answer
        return f"does not answer ({type(error).__name__})"
    return OK


class _Pending(Exception):
    pass


def _ask_database(world: World) -> None:
    with world.db.read() as connection:
        world.db.now(connection)
    if pending(world.db):
        raise _Pending


def _ask_broker(world: World) -> None:
    client = redis.Redis.from_url(world.settings.resolved_redis_url, socket_timeout=1, socket_connect_timeout=1)
    try:
        client.ping()
    finally:
        client.close()
