"""Heartbeats of worker processes: who lives, what it serves, what it has in flight.

Owns: the rows of `workers`. For people, metrics and pacing without Redis; never for deciding who holds
a slice (leases.py does that).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from batch.storage.engine import db_in, db_now, insert_for
from batch.storage.tables import workers

LIVE_S = 30.0  # without a heartbeat for longer, a worker counts as gone
FORGET_S = 600.0


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One process; `facts`: in flight and window by lane, engine versions."""

    name: str
    kind: str
    queues: list[str]
    facts: dict[str, Any]


_COLUMNS = [workers.c[name] for name in WorkerRow.__slots__]


def beat_worker(
    conn: sa.Connection, name: str, kind: str, queues: Sequence[str], facts: Mapping[str, Any]
) -> None:
    """Write this process's heartbeat; the first one makes its row."""
    insert = insert_for(conn, workers)
    row = insert.values(
        name=name, kind=kind, queues=list(queues), started_at=db_now(), heartbeat_at=db_now(), facts=dict(facts)
    )
    conn.execute(
        row.on_conflict_do_update(
            index_elements=["name"], set_={"heartbeat_at": db_now(), "facts": dict(facts), "queues": list(queues)}
        )
    )


def forget_worker(conn: sa.Connection, name: str) -> None:
    """Remove a process that ends in order."""
    conn.execute(sa.delete(workers).where(workers.c.name == name))


def live_workers(conn: sa.Connection, kind: str | None = None) -> list[WorkerRow]:
    """Processes with a heartbeat in the last 30 s, by name."""
    query = sa.select(*_COLUMNS).where(workers.c.heartbeat_at > db_in(-LIVE_S)).order_by(workers.c.name)
    if kind is not None:
        query = query.where(workers.c.kind == kind)
    return [WorkerRow(*row) for row in conn.execute(query)]


def forget_dead_workers(conn: sa.Connection) -> int:
    """Remove rows of processes that ended without saying so. Returns how many."""
    return conn.execute(sa.delete(workers).where(workers.c.heartbeat_at < db_in(-FORGET_S))).rowcount
