"""Who asks: keys, projects, request rates.

Owns: recognising a key (remembered for a second, so that a revoked one stops within that), the
default project of a server without keys, and each project's request rate in this process.
May not touch: HTTP beyond the values of headers; rows are storage.projects'.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from batch.clock import Clock
from batch.domain.errors import RateLimited, Unauthenticated
from batch.operations.keys import hash_key
from batch.operations.world import World
from batch.storage import projects
from batch.storage.projects import Project

REMEMBER_S = 1.0
_NOTE_USE_EVERY_S = 60.0
_REMEMBER_AT_MOST = 10_000
_NO_KEY = (
    "You didn't provide an API key. Provide it in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY)."
)


@dataclass(frozen=True, slots=True)
class Caller:
    """`key_id` is None on a server without keys."""

    project: Project
    key_id: int | None

    @property
    def project_id(self) -> int:
        return self.project.id


class Access:
    """One per process. Methods are called from the event loop; they reach the database in a thread."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._known: dict[str, tuple[float, Caller | None]] = {}
        self._keys_exist: tuple[float, bool] | None = None
        self._used: dict[int, float] = {}
        self._rates = RequestRates(world.clock)

    async def needs_key(self) -> bool:
        """True from the first key on that was ever made."""
        now = self._world.clock.monotonic()
        if self._keys_exist is None or (not self._keys_exist[1] and self._keys_exist[0] < now):
            exists = await run_in_threadpool(self._look_for_keys)
            self._keys_exist = (now + REMEMBER_S, exists)
        return self._keys_exist[1]

    async def caller(self, authorization: str | None) -> Caller:
        """Raises Unauthenticated; the message shows a few characters of a wrong key, never all."""
        key = _bearer(authorization) if await self.needs_key() else ""
        digest = hash_key(key) if key else ""
        now = self._world.clock.monotonic()
        known = self._known.get(digest)
        if known is None or known[0] < now:
            caller = await run_in_threadpool(self._recognise, digest, now)
            if len(self._known) >= _REMEMBER_AT_MOST:
                self._known.clear()
            known = self._known[digest] = (now + REMEMBER_S, caller)
        if known[1] is None:
            raise Unauthenticated(f"Incorrect API key provided: {_masked(key)}.")
        return known[1]

    def count_request(self, caller: Caller) -> dict[str, str]:
        """The x-ratelimit headers; none for a project without a limit. Raises RateLimited."""
        limit = int(caller.project.limits.get("requests_per_minute") or 0)
        return self._rates.take(caller.project.id, limit) if limit else {}

    def _look_for_keys(self) -> bool:
        with self._world.db.read() as connection:
            return projects.any_key_exists(connection)

    def _recognise(self, digest: str, now: float) -> Caller | None:
        if not digest:
            return Caller(self._default_project(), None)
        with self._world.db.read() as connection:
            found = projects.find_live_key(connection, digest)
        if found is None:
            return None
        key_id, project = found
        if self._used.get(key_id, float("-inf")) + _NOTE_USE_EVERY_S < now:
            self._used[key_id] = now
            with self._world.db.write() as connection:
                projects.note_key_used(connection, [key_id])
        return Caller(project, key_id)

    def _default_project(self) -> Project:
        with self._world.db.read() as connection:
            found = projects.find_project(connection, projects.DEFAULT_PROJECT)
        if found:
            return found
        with self._world.db.write() as connection:
            return projects.ensure_project(connection)


class RequestRates:
    """A token bucket per project, a minute deep, in this process only."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[int, tuple[float, float]] = {}  # project → (tokens, when)

    def take(self, project_id: int, per_minute: int) -> dict[str, str]:
        """One request of the project; raises RateLimited with the time until the next is allowed."""
        refill = per_minute / 60.0
        with self._lock:
            now = self._clock.monotonic()
            tokens, then = self._buckets.get(project_id, (float(per_minute), now))
            tokens = min(float(per_minute), tokens + (now - then) * refill)
            allowed = tokens >= 1.0
            tokens -= 1.0 if allowed else 0.0
            self._buckets[project_id] = (tokens, now)
        if not allowed:
            raise RateLimited(
                f"Rate limit reached for requests: limit {per_minute} / min. "
                f"Please try again in {(1.0 - tokens) / refill:.2f}s.",
                retry_after_s=(1.0 - tokens) / refill,
            )
        return {
            "x-ratelimit-limit-requests": str(per_minute),
            "x-ratelimit-remaining-requests": str(int(tokens)),
            "x-ratelimit-reset-requests": f"{(per_minute - tokens) / refill:.3f}s",
        }


def _bearer(authorization: str | None) -> str:
    scheme, _, key = (authorization or "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise Unauthenticated(_NO_KEY, code="")
    return key


def _masked(key: str) -> str:
    return f"{key[:4]}***{key[-4:]}" if len(key) >= 24 and key.isascii() else "***"
