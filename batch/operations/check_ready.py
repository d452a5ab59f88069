"""Is the service ready: do the database, the broker and the file store answer?

Owns: one short question to each. May not touch: what anything contains.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing

import redis

from batch.operations.world import World
from batch.storage.migrate import pending

OK = "ok"
MIN_FREE_BYTES = 16 * 1024 * 1024


def check_ready(world: World) -> dict[str, str]:
    """For database, broker and files: "ok", or what is wrong in a few words without addresses."""
    questions: dict[str, Callable[[], str | None]] = {
        "database": lambda: "migrations are pending: batchmill admin migrate" if pending(world.db) else OK,
        "broker": lambda: _ask_broker(world),
        "files": world.blobs.check,
        "disk": lambda: _ask_disk(world),
    }
    return {name: _ask(question) for name, question in questions.items()}


def _ask(question: Callable[[], str | None]) -> str:
    try:
        return question() or OK
    except Exception as error:  # the wall of readiness: whatever is wrong is the answer
        return f"does not answer ({type(error).__name__})"


def _ask_broker(world: World) -> None:
    url = world.settings.resolved_redis_url
    with closing(redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1)) as client:
        client.ping()


def _ask_disk(world: World) -> str:
    """What is kept on this machine's disks: the database's file and the files, where they are here."""
    database = world.db.url.database if world.db.is_sqlite else None
    is_full = any(path and shutil.disk_usage(path).free < MIN_FREE_BYTES for path in (database, world.blobs.root))
    return "no space is left" if is_full else OK
