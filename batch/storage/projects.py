"""Projects and API keys: who may ask, and for how much.

Owns: rows of `projects` and `api_keys`. Keys are stored as SHA-256 of 256 random bits, never as text.
A server where no key was ever made serves the one project "default" without asking for a key.
May not touch: how keys are made or shown (operations.keys).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from batch.domain.errors import NotFound
from batch.domain.ids import new_id
from batch.storage.engine import db_now
from batch.storage.tables import api_keys, batches, files, projects

DEFAULT_PROJECT = "default"


@dataclass(frozen=True, slots=True)
class Project:
    """`limits` may hold enqueued_requests, enqueued_tokens, storage_bytes, requests_per_minute; absent: none."""

    id: int
    public_id: str
    name: str
    limits: dict[str, Any] = field(default_factory=dict)
    allowed_providers: tuple[str, ...] | None = None
    max_priority: str = "high"


def ensure_project(connection: sa.Connection, name: str = DEFAULT_PROJECT) -> Project:
    """By name or by public id; made when there is none. The default one serves without keys. In a write()."""
    if found := find_project(connection, name):
        return found
    insert = sa.insert(projects).values(public_id=new_id("proj_"), name=name, created_at=db_now(), limits={})
    return _project(connection.execute(insert.returning(*projects.c)).one())


def find_project(connection: sa.Connection, name: str) -> Project | None:
    """By name or by public id."""
    row = connection.execute(
        sa.select(projects).where(sa.or_(projects.c.name == name, projects.c.public_id == name))
    ).one_or_none()
    return _project(row) if row else None


def get_project(connection: sa.Connection, name: str) -> Project:
    """By name or by public id; raises NotFound."""
    project = find_project(connection, name)
    if project is None:
        raise NotFound(f"No such project: {name}", param="project")
    return project


def load_project(connection: sa.Connection, project_id: int) -> Project:
    """By internal id; raises NotFound."""
    row = connection.execute(sa.select(projects).where(projects.c.id == project_id)).one_or_none()
    if row is None:
        raise NotFound("No such project.", param="project")
    return _project(row)


def update_project(
    connection: sa.Connection,
    project_id: int,
    limits: dict[str, Any],
    allowed_providers: list[str] | None,
    max_priority: str | None,
) -> Project:
    """Replace what is not None; an empty list of providers lifts the restriction."""
    values: dict[str, Any] = {"limits": limits}
    if allowed_providers is not None:
        values["allowed_providers"] = allowed_providers or sa.null()
    if max_priority is not None:
        values["max_priority"] = max_priority
    update = sa.update(projects).where(projects.c.id == project_id).values(**values)
    return _project(connection.execute(update.returning(*projects.c)).one())


def stored_bytes(connection: sa.Connection, project_id: int) -> int:
    """Bytes of the project's files that are not deleted."""
    query = sa.select(sa.func.coalesce(sa.func.sum(files.c.size_bytes), 0))
    return int(
        connection.execute(query.where(files.c.project_id == project_id, files.c.deleted_at.is_(None))).scalar_one()
    )


def read_cost(connection: sa.Connection, project_id: int) -> tuple[float | None, int]:
    """What its batches cost so far in dollars, None when nothing is known, and its lines of unknown price."""
    query = sa.select(sa.func.sum(batches.c.cost_usd), sa.func.coalesce(sa.func.sum(batches.c.unpriced), 0))
    cost, unpriced = connection.execute(query.where(batches.c.project_id == project_id)).one()
    return (None if unpriced and not cost else float(cost or 0)), int(unpriced)


def any_key_exists(connection: sa.Connection) -> bool:
    """True from the first key on, also when all are revoked: revoking the last key opens nothing."""
    return bool(connection.execute(sa.select(sa.exists(sa.select(api_keys.c.id)))).scalar_one())


def insert_key(connection: sa.Connection, project_id: int, name: str, key_hash: str, hint: str) -> str:
    """The new key's public id."""
    public_id = new_id("key_")
    connection.execute(
        sa.insert(api_keys).values(
            public_id=public_id, project_id=project_id, name=name, key_hash=key_hash, hint=hint, created_at=db_now()
        )
    )
    return public_id


def find_live_key(connection: sa.Connection, key_hash: str) -> tuple[int, Project] | None:
    """The key's internal id and its project; None for a key that is unknown or revoked."""
    row = connection.execute(
        sa.select(api_keys.c.id.label("key_id"), projects)
        .join(projects, projects.c.id == api_keys.c.project_id)
        .where(api_keys.c.key_hash == key_hash, api_keys.c.revoked_at.is_(None))
    ).one_or_none()
    return (row.key_id, _project(row)) if row else None


def note_key_used(connection: sa.Connection, key_ids: list[int]) -> None:
    connection.execute(sa.update(api_keys).where(api_keys.c.id.in_(key_ids)).values(last_used_at=db_now()))


def list_keys(connection: sa.Connection, project_id: int | None = None) -> Sequence[sa.Row[Any]]:
    """Keys as they may be shown: `hint` is the last four characters. Oldest first, revoked ones included."""
    query: sa.Select[Any] = (
        sa.select(
            api_keys.c.id, api_keys.c.public_id, api_keys.c.project_id, projects.c.name.label("project"),
            api_keys.c.name, api_keys.c.hint, api_keys.c.created_at, api_keys.c.last_used_at, api_keys.c.revoked_at,
        )
        .join(projects, projects.c.id == api_keys.c.project_id)
        .order_by(api_keys.c.id)
    )
    if project_id is not None:
        query = query.where(api_keys.c.project_id == project_id)
    return connection.execute(query).all()


def revoke_key_if_live(connection: sa.Connection, public_id: str) -> bool:
    """False when it was revoked before; raises NotFound for an unknown id."""
    done = connection.execute(
        sa.update(api_keys)
        .where(api_keys.c.public_id == public_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=db_now())
    )
    if done.rowcount:
        return True
    if connection.execute(sa.select(api_keys.c.id).where(api_keys.c.public_id == public_id)).first() is None:
        raise NotFound(f"No such key: {public_id}", param="id")
    return False


def _project(row: Any) -> Project:
    return Project(
        id=row.id,
        public_id=row.public_id,
        name=row.name,
        limits=dict(row.limits or {}),
        allowed_providers=tuple(row.allowed_providers) if row.allowed_providers else None,
        max_priority=row.max_priority,
    )
