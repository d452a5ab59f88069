"""Is the service ready: do the database, the broker and the file store answer?

Owns: one short question to each. May not touch: what anything contains.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import redis

from batch.operations.world import World
from batch.storage.migrate import pending

OK = "ok"
MIN_FREE_BYTES = 16 * 1024 * 1024


def check_ready(world: World) -> dict[str, str]:
    """For database, broker and files: "ok", or what is wrong in a few words without addresses."""
    return {
        "database": _ask(lambda: _ask_database(world)),
        "broker": _ask(lambda: _ask_broker(world)),
        "files": _ask(lambda: world.blobs.check()),
        "disk": _ask(lambda: _ask_disk(world)),
    }


def _ask(question: Callable[[], object]) -> str:
    try:
        question()
    except _Wrong as wrong:
        return str(wrong)
    except Exception as error:  # the wall of readiness: whatever is wrong is the answer
        return f"does not answer ({type(error).__name__})"
    return OK


class _Wrong(Exception):
    """In words for the answer."""


def _ask_database(world: World) -> None:
    with world.db.read() as connection:
        world.db.now(connection)
    if pending(world.db):
        raise _Wrong("migrations are pending: batchmill admin migrate")


def _ask_disk(world: World) -> None:
    """What is kept on this machine's disks: the database's file and the files, where they are here."""
    database = world.db.url.database if world.db.is_sqlite else None
    for path in (database, world.blobs.root):
        if path is not None and shutil.disk_usage(path).free < MIN_FREE_BYTES:
            raise _Wrong("no space is left")


def _ask_broker(world: World) -> None:
    client = redis.Redis.from_url(world.settings.resolved_redis_url, socket_timeout=1, socket_connect_timeout=1)
    try:
        client.ping()
    finally:
        client.close()
