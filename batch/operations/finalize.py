"""Finalize: files from a sealed batch, then files, terminal status and webhook event in one transaction.

Owns: the lease while writing, the check that nothing was lost or doubled, publishing.
May not touch: what stands in the files (write_files). Last step before download. A crash at any point
leaves blobs without a row, which are swept after a day; the next finalize writes new ones.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from batch import telemetry
from batch.operations.world import World
from batch.operations.write_files import LineFile, Renew, Written, write_results, write_unread
from batch.storage import batches, files, jobs, output, webhooks
from batch.storage.batches import BatchRow
from batch.storage.jobs import JOB_LEASE_S, Job


class _Lost(Exception):
    """Another process holds the job now."""


def finalize_batch(world: World, batch_id: int, owner: str) -> str:
    """What came of it: the terminal status, or "idle" (nothing to do, or another does it), "lost" (taken over),
    "mismatch" (the counts disagree: nothing is published, and an error event says so).
    """
    epoch = world.db.transact(jobs.take_job_if_free, batch_id, Job.FINALIZE, owner)
    if epoch is None:
        return "idle"
    with world.db.read() as conn:
        batch = batches.load_batch(conn, batch_id)
    written = Written(LineFile(world), LineFile(world))
    try:
        status = _write_and_publish(world, batch, epoch, written)
    except _Lost:
        status = "lost"
    except BaseException:
        written.abort()
        raise
    if status in ("lost", "mismatch"):
        written.abort()
    return status


def _write_and_publish(world: World, batch: BatchRow, epoch: int, written: Written) -> str:
    renew = _renewing(world, batch.id, epoch)
    if was_read(batch):
        write_results(world, batch, written, renew)
        if not _is_conserved(batch, written):
            return "mismatch"
    else:
        with world.db.read() as conn:
            file = files.load_file(conn, batch.input_file_id) if batch.input_file_id else None
        write_unread(world, batch, file, written, renew)
    if written.total == 0:
        written.errors.open()  # no terminal batch without a file, except a failed one
    written.commit()
    status = world.db.transact(_publish, world, batch, epoch, written)
    telemetry.emit("batch_state", status=status, batch=batch.public_id)
    world.bells.deliver_webhooks()
    return status


def was_read(batch: BatchRow) -> bool:
    """False when it was cancelled while validating: its rows are not whole, its input file is."""
    return batch.in_progress_at is not None


def _is_conserved(batch: BatchRow, written: Written) -> bool:
    """Each line of 1 … total once, in one of the two files, and as the counters say."""
    is_whole = (
        written.total == batch.total
        and written.seen.count(1) == batch.total
        and written.output.lines == batch.completed
        and written.failed == batch.failed
        and (written.missing == 0 or batch.status != "finalizing")
    )
    if not is_whole:
        telemetry.emit(
            "conservation_broken",
            batch=batch.public_id,
            total=batch.total,
            completed=batch.completed,
            failed=batch.failed,
            written_output=written.output.lines,
            written_errors=written.errors.lines,
            without_result=written.missing,
            distinct_lines=written.seen.count(1),
        )
    return is_whole


def _publish(conn: Connection, world: World, batch: BatchRow, epoch: int, written: Written) -> str:
    values: dict[str, Any] = {}
    for name, file in (("output", written.output), ("error", written.errors)):
        if file.writer is not None:
            row = files.insert_file(
                conn,
                project_id=batch.project_id,
                purpose="batch_output",
                filename=f"{batch.public_id}_{name}.jsonl",
                size_bytes=file.writer.size,
                blob=file.writer.name,
                sha256=file.sha256,
                expires_after_s=batch.output_expires_after_s or world.settings.output_expires_after_s or None,
            )
            values[f"{name}_file_id"] = row.id
    if written.input_errors is not None:
        output.replace_errors(conn, batch.id, written.input_errors)
        values |= {"total": written.total, "completed": 0, "failed": 0}
    status = jobs.publish_if_held(conn, batch.id, epoch, source=batch.status, **values)
    if status is None:
        raise _Lost  # rolls the file rows back
    webhooks.enqueue_event(conn, batch, f"batch.{status}")
    return status


def _renewing(world: World, batch_id: int, epoch: int) -> Renew:
    """Renews the job by the process's own clock, long before it ends; raises _Lost when it is gone."""
    due = world.clock.monotonic() + JOB_LEASE_S / 3

    def renew() -> None:
        nonlocal due
        if world.clock.monotonic() < due:
            return
        due = world.clock.monotonic() + JOB_LEASE_S / 3
        if not world.db.transact(lambda conn: jobs.renew_job_if_held(conn, batch_id, epoch)):
            raise _Lost

    return renew
