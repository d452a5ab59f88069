"""The doctor: every invariant of a data directory or database, looked at once; nothing is changed.

Owns: which checks there are, how bad a finding is, and what would mend it.
May not touch: any row or blob.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from batch.domain.errors import NotFound, Unavailable
from batch.operations.retention import ORPHAN_AFTER_S, find_orphans
from batch.operations.world import World
from batch.storage import invariants
from batch.storage.migrate import pending
from batch.storage.rescues import stranded_batches
from batch.storage.workers import live_workers

Verdict = Literal["ok", "warning", "wrong"]
_SHOWN = 20
_BLOBS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result: `detail` says what was found, `mend` what a person can do, if something must be done."""

    check: str
    verdict: Verdict
    detail: str
    mend: str | None = None


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    find: Callable[[sa.Connection, int], list[str]]
    fine: str
    bad: str
    mend: str
    verdict: Verdict = "wrong"


_BY_ITSELF = "a running jobs worker mends it within a minute: batchmill up"
_CHECKS = (
    _Check("counts", invariants.miscounted_batches, "counts agree with the results", "counts disagree with results of",
           "do not delete anything; report it with the output of --json"),
    _Check("endings", invariants.unfinished_endings, "every ended batch has its files", "files are missing of",
           "report it; the result rows are kept until they are purged"),
    _Check("leases", invariants.late_leases, "no lease is overdue", "leases are overdue of", _BY_ITSELF, "warning"),
    _Check("jobs", invariants.stuck_jobs, "no ingest or finalize waits", "nobody works on", _BY_ITSELF, "warning"),
    _Check("slices", lambda conn, limit: [str(i) for i in stranded_batches(conn, limit=limit)],
           "every open line stands in a slice", "lines stand in no slice, of the batches with internal id", _BY_ITSELF,
           "warning"),
    _Check("leftovers", invariants.leftover_rows, "nothing is left of ended work", "rows are left over of", _BY_ITSELF,
           "warning"),
    _Check("counters", invariants.lanes_out_of_count, "advisory counters agree", "advisory counters are off for",
           _BY_ITSELF, "warning"),
)  # fmt: skip


def examine(world: World) -> list[Finding]:
    """Every check in order; "wrong" ones break a promise, "warning" ones mend themselves. Raises Unavailable."""
    schema = _examine_schema(world)
    if schema.verdict == "wrong":
        return [schema]
    found = [schema]
    with world.db.read() as conn:
        faults = invariants.sqlite_faults(conn)
        if faults or world.db.is_sqlite:
            found.append(
                Finding("database", "wrong", "; ".join(faults), "stop everything and restore the newest backup")
                if faults
                else Finding("database", "ok", "SQLite's own check finds nothing")
            )
        for check in _CHECKS:
            names = check.find(conn, _SHOWN)
            found.append(
                Finding(check.name, check.verdict, f"{check.bad} {_listing(names)}", check.mend)
                if names
                else Finding(check.name, "ok", check.fine)
            )
    return [*found, *_examine_blobs(world), _examine_workers(world)]


def _examine_schema(world: World) -> Finding:
    if pending(world.db):
        return Finding("schema", "wrong", "the database has an older schema, or none", "batchmill admin migrate")
    return Finding("schema", "ok", "the database has this version's schema")


def _examine_blobs(world: World) -> Iterator[Finding]:
    missing, count = [], 0
    for public_id, blob, size in _live_files(world):
        count += 1
        try:
            held = world.blobs.size(blob)
        except NotFound:
            missing.append(f"{public_id} (no bytes)")
            continue
        if held != size:
            missing.append(f"{public_id} ({held} of {size} bytes)")
    if missing:
        yield Finding("files", "wrong", f"bytes are missing of {_listing(missing)}", "restore files_url from a backup")
    else:
        yield Finding("files", "ok", f"all {count:,} files have their bytes")
    orphans = sum(1 for _ in find_orphans(world, int(world.clock.now() - ORPHAN_AFTER_S) * 1000))
    if orphans:
        yield Finding("orphans", "warning", f"{orphans:,} blobs older than a day belong to no file", _BY_ITSELF)
    else:
        yield Finding("orphans", "ok", "no old blob without a file")


def _live_files(world: World) -> Iterator[tuple[str, str, int]]:
    after = 0
    while True:
        with world.db.read() as conn:
            rows = invariants.live_blobs(conn, after, _BLOBS_AT_ONCE)
        for file_id, public_id, blob, size in rows:
            after = file_id
            yield public_id, blob, size
        if len(rows) < _BLOBS_AT_ONCE:
            return


def _examine_workers(world: World) -> Finding:
    try:
        with world.db.read() as conn:
            live = live_workers(conn)
    except Unavailable as error:
        return Finding("workers", "wrong", error.message)
    kinds = sorted({queue for worker in live for queue in worker.queues})
    if not live:
        return Finding("workers", "warning", "no worker is running", "batchmill up")
    return Finding("workers", "ok", f"{len(live)} running, serving {', '.join(kinds)}")


def _listing(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} or more others" if len(names) > 5 else "")
