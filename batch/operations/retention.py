"""Retention: rows of ended batches, expired files, bytes that nobody names any more.

Owns: bounded passes that sweeps call until they return 0; each pass may die anywhere and be done again.
Order for a file: marked deleted, bytes removed, noted. For bytes: only those older than a day are orphans,
since a blob stands before its row does. May not touch: open batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress

from batch.domain.errors import NotFound
from batch.operations.world import World
from batch.storage import files, jobs, output, uploads
from batch.storage.jobs import Job

ORPHAN_AFTER_S = 86_400
_ROWS_PER_PASS = 2000
_FILES_PER_PASS = 200
_BLOBS_PER_PASS = 500


def purge_ended_batches(world: World, owner: str) -> int:
    """Remove request bodies and result rows of batches that ended long enough ago. Returns rows removed.

    One batch a pass, in transactions of at most 2,000 rows a table. Files and counts stay.
    """
    keep_s = world.settings.purge_after_s
    if keep_s == 0:
        return 0
    with world.db.read() as conn:
        due = jobs.waiting_jobs(conn, Job.PURGE, idle_s=keep_s, limit=1)
    return purge_batch(world, due[0], owner) if due else 0


def purge_batch(world: World, batch_id: int, owner: str) -> int:
    """Remove the rows of one ended batch; returns how many, and at least 1 when it marked the batch as purged."""
    epoch = world.db.transact(jobs.take_job_if_free, batch_id, Job.PURGE, owner)
    if epoch is None:
        return 0
    removed = 0
    while True:
        with world.db.write() as conn:
            if not jobs.renew_job_if_held(conn, batch_id, epoch):
                return removed
            gone = output.delete_lines(conn, batch_id, _ROWS_PER_PASS)
            if gone == 0:
                jobs.note_purged_if_held(conn, batch_id, epoch)
                return max(removed, 1)
        removed += gone


def delete_file(world: World, project_id: int, public_id: str) -> None:
    """Raises NotFound when there is no such file, or no longer."""
    if not world.db.transact(files.mark_deleted_if_live, project_id, public_id):
        raise NotFound(f"No such File object: {public_id}", param="id")


def expire_files(world: World) -> int:
    """Mark files and uploads past their time; returns how many."""
    with world.db.write() as conn:
        return files.mark_expired(conn, _FILES_PER_PASS) + uploads.expire_overdue(conn, _FILES_PER_PASS)


def remove_deleted_bytes(world: World) -> int:
    """Remove the bytes of deleted files that no running batch needs, and parts of ended uploads."""
    with world.db.read() as conn:
        unneeded = files.unneeded_blobs(conn, _FILES_PER_PASS)
        parts = uploads.parts_of_ended_uploads(conn, _FILES_PER_PASS)
    for _, blob in unneeded:
        world.blobs.delete(blob)
    for part in parts:
        world.blobs.delete(part.blob)
    if unneeded or parts:
        with world.db.write() as conn:
            files.note_blobs_deleted(conn, [file_id for file_id, _ in unneeded])
            uploads.delete_parts(conn, [part.id for part in parts])
    return len(unneeded) + len(parts)


def sweep_orphan_blobs(world: World) -> int:
    """Remove blobs without a row, and half-written files, older than a day. Walks the whole store."""
    with world.db.read() as conn:
        before_ms = world.db.now(conn) - ORPHAN_AFTER_S * 1000
    removed = world.blobs.drop_unfinished(before_ms)
    for name in find_orphans(world, before_ms):
        with suppress(NotFound):  # a name that is none of ours stands in our folder: leave it
            world.blobs.delete(name)
            removed += 1
    return removed


def find_orphans(world: World, before_ms: int) -> Iterator[str]:
    """Blobs written before that time that no row names."""
    for kind in ("inputs", "outputs", "parts"):
        old = (name for name, _, at in world.blobs.list(kind) if at < before_ms)
        while page := list(itertools.islice(old, _BLOBS_PER_PASS)):
            with world.db.read() as conn:
                known = files.known_blobs(conn, page) | uploads.known_part_blobs(conn, page)
            yield from (name for name in page if name not in known)
