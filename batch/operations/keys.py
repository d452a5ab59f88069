"""API keys: made, listed, revoked, recognised.

Owns: the shape of a key (bm_ and 43 characters, 256 random bits) and its hash. The key itself is
returned once, by create_key, and is never stored or logged.
May not touch: HTTP.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row

from batch.domain.errors import InvalidRequest
from batch.operations.world import World
from batch.storage import projects
from batch.storage.batches import PRIORITY_CLASSES
from batch.storage.projects import Project

LIMIT_NAMES = ("enqueued_requests", "enqueued_tokens", "storage_bytes", "requests_per_minute")


@dataclass(frozen=True, slots=True)
class NewKey:
    """`key` is shown once; afterwards only `hint` is known."""

    public_id: str
    key: str
    hint: str
    project: str
    name: str


def create_key(world: World, *, project: str = projects.DEFAULT_PROJECT, name: str = "key") -> NewKey:
    """A new key of the project, which is made if there is none of that name."""
    key = "bm_" + base64.urlsafe_b64encode(world.clock.randbytes(32)).decode().rstrip("=")

    def insert(connection: Connection) -> NewKey:
        owner = projects.ensure_project(connection, project)
        public_id = projects.insert_key(connection, owner.id, name, hash_key(key), key[-4:])
        return NewKey(public_id, key, key[-4:], owner.name, name)

    return world.db.transact(insert)


def list_keys(world: World, *, project: str | None = None) -> Sequence[Row[Any]]:
    """All keys, or one project's; raises NotFound for an unknown project."""
    with world.db.read() as connection:
        owner = projects.get_project(connection, project) if project else None
        return projects.list_keys(connection, owner.id if owner else None)


def revoke_key(world: World, public_id: str) -> bool:
    """True when it was live. A running API notices within a second. Raises NotFound."""
    return world.db.transact(projects.revoke_key_if_live, public_id)


def set_project_limits(
    world: World,
    project: str,
    *,
    limits: dict[str, Any] | None = None,
    allowed_providers: list[str] | None = None,
    max_priority: str | None = None,
) -> Project:
    """Change what a project may use; a limit of 0 lifts it. Raises InvalidRequest, NotFound."""
    for name, value in (limits or {}).items():
        if name not in LIMIT_NAMES:
            raise InvalidRequest(f"No such limit: {name}. Limits are {', '.join(LIMIT_NAMES)}.", param=name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InvalidRequest(f"{name} must be a whole number, 0 or more.", param=name)
    if max_priority is not None and max_priority not in PRIORITY_CLASSES:
        raise InvalidRequest(f"Invalid value: '{max_priority}'. Use high, normal or low.", param="max_priority")
    unknown = sorted(set(allowed_providers or ()) - set(world.catalog.providers))
    if unknown:
        raise InvalidRequest(f"No such provider: {', '.join(unknown)}.", param="allowed_providers")
    with world.db.write() as connection:
        owner = projects.ensure_project(connection, project)
        merged = {key: value for key, value in {**owner.limits, **(limits or {})}.items() if value}
        return projects.update_project(connection, owner.id, merged, allowed_providers, max_priority)


def project_cost(world: World, project: str) -> tuple[float | None, int]:
    """Dollars spent (None: unknown) and lines of unknown price. Raises NotFound."""
    with world.db.read() as connection:
        return projects.read_cost(connection, projects.get_project(connection, project).id)


def hash_key(key: str) -> str:
    """Plain SHA-256 is enough for 256 random bits: there is nothing to guess."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
