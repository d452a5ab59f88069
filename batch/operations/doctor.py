"""The doctor: every invariant of a data directory or database, looked at once; nothing is changed.

Owns: which checks there are, how bad a finding is, and what would mend it.
May not touch: any row or blob.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from batch.domain.errors import NotFound
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
    """Every check in order; "wrong" ones break a promise, "warning" ones mend themselves."""
    if pending(world.db):
        return [Finding("schema", "wrong", "the database has an older schema, or none", "batchmill admin migrate")]
    found = [Finding("schema", "ok", "the database has this version's schema")]
    with world.db.read() as conn:
        if world.db.is_sqlite:
            faults = "; ".join(invariants.sqlite_faults(conn))
            mend = "stop everything and restore the newest backup"
            found.append(_judge("database", "SQLite's own check finds nothing", faults, mend))
        for check in _CHECKS:
            names = check.find(conn, _SHOWN)
            bad = f"{check.bad} {_listing(names)}" if names else ""
            found.append(_judge(check.name, check.fine, bad, check.mend, check.verdict))
    return [*found, *_examine_blobs(world), _examine_workers(world)]


def _judge(check: str, fine: str, bad: str, mend: str, verdict: Verdict = "wrong") -> Finding:
    """`bad` is empty where nothing is wrong, else says what is."""
    return Finding(check, verdict, bad, mend) if bad else Finding(check, "ok", fine)


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
    bad = f"bytes are missing of {_listing(missing)}" if missing else ""
    yield _judge("files", f"all {count:,} files have their bytes", bad, "restore files_url from a backup")
    orphans = sum(1 for _ in find_orphans(world, int(world.clock.now() - ORPHAN_AFTER_S) * 1000))
    bad = f"{orphans:,} blobs older than a day belong to no file" if orphans else ""
    yield _judge("orphans", "no old blob without a file", bad, _BY_ITSELF, "warning")


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
    with world.db.read() as conn:
        live = live_workers(conn)
    kinds = sorted({queue for worker in live for queue in worker.queues})
    if not live:
        return Finding("workers", "warning", "no worker is running", "batchmill up")
    return Finding("workers", "ok", f"{len(live)} running, serving {', '.join(kinds)}")


def _listing(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} or more others" if len(names) > 5 else "")
