"""Kill −9 at every boundary of the journey, in a real process; then the operation is started again.

Each test is named after the moment of the crash. Leases of the dead are made to end at once.
"""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from batch.domain.errors import Conflict
from batch.operations import retention
from batch.operations.cancel_batch import cancel_batch
from batch.operations.end_batches import end_due_batches, ring_waiting
from batch.operations.finalize import finalize_batch
from batch.operations.ingest import ingest_batch
from batch.operations.retention import delete_file
from batch.operations.retry_batch import retry_batch
from batch.operations.world import World
from batch.storage.batches import BatchRow
from batch.storage.claims import claim_slices, load_open_lines
from batch.storage.jobs import Job
from batch.storage.rescues import close_resolved, expire_leases
from batch.storage.results import record_group
from batch.storage.tables import batches, files, requests, slices, webhook_deliveries
from batch.storage.watch import claimable_lanes
from tests.harness.dying import die_at
from tests.harness.rows import lapse_leases, result_of
from tests.harness.worlds import (
    create,
    default_project,
    ingest,
    jsonl,
    load,
    read_lines,
    record,
    request_line,
    upload,
)

INGEST = "batch.operations.ingest:ingest_batch"
FINALIZE = "batch.operations.finalize:finalize_batch"


def lines(count: int) -> bytes:
    return jsonl([request_line(f"r{i}") for i in range(count)])


def finished(world: World, count: int = 3) -> BatchRow:
    batch = ingest(world, lines(count))
    record(world, batch, {i + 1: (f"r{i}", i > 0) for i in range(count)})
    return load(world, batch)


def free_jobs(world: World) -> None:
    """As if the dead holder's job lease had run out, a while ago."""
    with world.db.write() as conn:
        conn.execute(sa.update(batches).values(job_until=1, created_at=1))
        conn.execute(sa.update(batches).where(batches.c.sealed_at.is_not(None)).values(sealed_at=1))


def names(world: World, batch: BatchRow) -> list[str]:
    """custom_ids of both files together; each must stand there once."""
    batch = load(world, batch)
    found = [*(read_lines(world, batch, "output") or []), *(read_lines(world, batch, "error") or [])]
    return sorted(line["custom_id"] for line in found)


def end_in_files(world: World, batch: BatchRow, count: int) -> None:
    """What is left of the journey, and its proof."""
    open_lines = load(world, batch).total - load(world, batch).completed - load(world, batch).failed
    if open_lines:
        record(world, batch, {i + 1: (f"r{i}", True) for i in range(count)})
    assert finalize_batch(world, batch.id, "next") == "completed"
    assert names(world, batch) == sorted(f"r{i}" for i in range(count))


def test_killed_after_the_blob_and_before_the_file_row(sqlite_world: World) -> None:
    """Nobody was told of a file; the bytes are an orphan until the sweep takes it, and the upload works again."""
    world = sqlite_world
    die_at(world, "batch.storage.files:insert_file", "tests.harness.worlds:upload", "{}")
    [(orphan, _, _)] = world.blobs.list("inputs")
    again = upload(world, b"{}")
    assert retention.sweep_orphan_blobs(world) == 0
    retention.ORPHAN_AFTER_S, kept = -10, retention.ORPHAN_AFTER_S
    try:
        assert retention.sweep_orphan_blobs(world) == 1
    finally:
        retention.ORPHAN_AFTER_S = kept
    assert orphan not in [name for name, _, _ in world.blobs.list("inputs")]
    with world.db.read() as conn:
        assert conn.execute(sa.select(files.c.public_id)).scalars().all() == [again]


def test_killed_after_the_batch_row_and_before_its_bell(sqlite_world: World) -> None:
    """The batch exists; the sweep rings for it."""
    world = sqlite_world
    die_at(world, "tests.harness.worlds:RungBells.ingest", "tests.harness.worlds:create", upload(world, lines(2)))
    free_jobs(world)
    assert ring_waiting(world, Job.INGEST) == 1
    [(_, batch_id)] = [bell for bell in world.bells.rung if bell[0] == "ingest"]  # type: ignore[attr-defined]
    assert ingest_batch(world, batch_id, "next") == "started"


@pytest.mark.parametrize("chunk", [1, 2])
def test_killed_between_chunks_of_an_ingest(world: World, chunk: int) -> None:
    """The next one goes on at the stored offset; no line is stored twice, none is left out."""
    batch = create(world, lines(700))
    die_at(world, "batch.storage.ingest:store_chunk_if_held", INGEST, batch.id, "dead", call=chunk)
    assert load(world, batch).status == "validating"
    free_jobs(world)
    assert ingest_batch(world, batch.id, "next") == "started"
    with world.db.read() as conn:
        stored = conn.execute(sa.select(requests.c.line).where(requests.c.batch_id == batch.id)).scalars()
        assert sorted(stored) == list(range(1, 701))
        assert conn.execute(sa.select(sa.func.sum(slices.c.line_count))).scalar_one() == 700


def test_killed_before_the_last_transaction_of_an_ingest(sqlite_world: World) -> None:
    """Every line is stored, and nothing of it shows until the batch starts as a whole."""
    world = sqlite_world
    batch = create(world, lines(5))
    die_at(world, "batch.storage.ingest:start_if_held", INGEST, batch.id, "dead")
    assert (load(world, batch).status, load(world, batch).total) == ("validating", 0)
    free_jobs(world)
    assert ingest_batch(world, batch.id, "next") == "started"
    end_in_files(world, batch, 5)


def test_killed_in_the_middle_of_the_last_transaction_of_an_ingest(world: World) -> None:
    """Status and slices come together or not at all."""
    batch = create(world, lines(5))
    die_at(world, "batch.storage.ingest:_insert_slices", INGEST, batch.id, "dead")
    assert load(world, batch).status == "validating"
    free_jobs(world)
    assert ingest_batch(world, batch.id, "next") == "started"
    end_in_files(world, batch, 5)


def test_killed_after_the_last_transaction_of_an_ingest_and_before_its_bells(sqlite_world: World) -> None:
    """Pumps look into the database by themselves and find the lane."""
    world = sqlite_world
    batch = create(world, lines(5))
    die_at(world, "tests.harness.worlds:RungBells.drain", INGEST, batch.id, "dead")
    assert load(world, batch).status == "in_progress"
    assert ingest_batch(world, batch.id, "next") == "idle"
    with world.db.read() as conn:
        assert len(claimable_lanes(conn)) == 1
    end_in_files(world, batch, 5)


def test_killed_after_a_claim_and_before_its_first_call(world: World) -> None:
    """The lease runs out, and every line is claimed again."""
    batch = ingest(world, lines(5))
    with world.db.read() as conn:
        [lane] = claimable_lanes(conn)
    [_dead] = claim_slices(world.db, lane, "dead", want_lines=9)
    lapse_leases(world.db)
    assert expire_leases(world.db) == 1
    [claim] = claim_slices(world.db, lane, "next", want_lines=9)
    with world.db.read() as conn:
        assert len(load_open_lines(conn, claim)) == 5
    end_in_files(world, batch, 5)


def test_killed_after_a_call_and_before_its_record(world: World) -> None:
    """The call is paid for and lost; only its own line is made again."""
    batch = ingest(world, lines(3))
    with world.db.read() as conn:
        [lane] = claimable_lanes(conn)
    [dead] = claim_slices(world.db, lane, "dead", want_lines=9)
    record_group(world.db, [result_of(dead, 1)], "dead")  # line 2 was answered too, and died with the process
    lapse_leases(world.db)
    expire_leases(world.db)
    [claim] = claim_slices(world.db, lane, "next", want_lines=9)
    with world.db.read() as conn:
        assert [line.line for line in load_open_lines(conn, claim)] == [2, 3]
    report = record_group(world.db, [result_of(claim, 2), result_of(claim, 3)], "next", [claim])
    assert report.sealed_batches == [batch.id]


def test_killed_after_a_record_and_before_its_slice_closes(world: World) -> None:
    """A slice without open lines is closed by the sweep; nothing is asked again."""
    ingest(world, lines(3))
    with world.db.read() as conn:
        [lane] = claimable_lanes(conn)
    [dead] = claim_slices(world.db, lane, "dead", want_lines=9)
    record_group(world.db, [result_of(dead, n) for n in (1, 2, 3)], "dead")
    lapse_leases(world.db)
    expire_leases(world.db)
    close_resolved(world.db)
    with world.db.read() as conn:
        assert conn.execute(sa.select(slices.c.state)).scalars().all() == ["done"]


def test_killed_after_the_seal_and_before_the_finalize_bell(world: World) -> None:
    """The sweep rings for the sealed batch."""
    batch = finished(world)
    free_jobs(world)
    assert ring_waiting(world, Job.FINALIZE) == 1
    end_in_files(world, batch, 3)


@pytest.mark.parametrize(
    "seam",
    ["batch.storage.output:results_between", "batch.files.blobs:BlobWriter.commit", "batch.storage.files:insert_file"],
)
def test_killed_in_the_middle_of_a_finalize(sqlite_world: World, seam: str) -> None:
    """While lines are written, before the blobs stand, and before their rows: the next one publishes, once."""
    world = sqlite_world
    batch = finished(world)
    die_at(world, seam, FINALIZE, batch.id, "dead")
    assert (load(world, batch).status, load(world, batch).output_file_id) == ("finalizing", None)
    assert finalize_batch(world, batch.id, "early") == "idle"
    free_jobs(world)
    end_in_files(world, batch, 3)


def test_killed_after_the_file_rows_and_before_the_status(world: World) -> None:
    """One transaction: no file is shown without its batch."""
    batch = finished(world)
    die_at(world, "batch.storage.jobs:publish_if_held", FINALIZE, batch.id, "dead")
    with world.db.read() as conn:
        assert conn.execute(sa.select(files.c.id).where(files.c.purpose == "batch_output")).first() is None
    free_jobs(world)
    end_in_files(world, batch, 3)


def test_killed_after_publishing_and_before_the_webhook_bell(sqlite_world: World) -> None:
    """The event stands in the outbox, in the same transaction as the status; a sweep sends it."""
    world = sqlite_world
    batch = finished(world)
    with world.db.write() as conn:
        conn.execute(sa.delete(webhook_deliveries))
    die_at(world, "tests.harness.worlds:RungBells.deliver_webhooks", FINALIZE, batch.id, "dead")
    assert load(world, batch).status == "completed"
    assert names(world, batch) == ["r0", "r1", "r2"]


@pytest.mark.parametrize("seam", ["batch.storage.batches:seal_if_quiet", "tests.harness.worlds:RungBells.finalize"])
def test_killed_in_the_middle_of_a_cancel(world: World, seam: str) -> None:
    """Once it is `cancelling` it ends cancelled, whoever goes on."""
    batch = ingest(world, lines(3))
    cancel = "batch.operations.cancel_batch:cancel_batch"
    die_at(world, seam, cancel, batch.project_id, batch.public_id)
    assert load(world, batch).status == "cancelling"
    end_due_batches(world)
    free_jobs(world)
    assert ring_waiting(world, Job.FINALIZE) == 1
    assert finalize_batch(world, batch.id, "next") == "cancelled"
    assert names(world, batch) == ["r0", "r1", "r2"]


def test_killed_in_the_middle_of_a_purge(sqlite_world: World) -> None:
    """Rows go in passes; the next purge takes what is left, and the files stay."""
    world = sqlite_world
    batch = finished(world)
    assert finalize_batch(world, batch.id, "one") == "completed"
    die_at(world, "batch.storage.jobs:note_purged_if_held", "batch.operations.retention:purge_batch", batch.id, "dead")
    free_jobs(world)
    assert retention.purge_batch(world, batch.id, "next") >= 1
    assert load(world, batch).purged_at is not None
    assert names(world, batch) == ["r0", "r1", "r2"]


def test_killed_between_the_bytes_of_a_deleted_file_and_the_note_of_it(sqlite_world: World) -> None:
    """Removing bytes twice is harmless."""
    world = sqlite_world
    file_id = upload(world, b"{}")
    delete_file(world, default_project(world).id, file_id)
    die_at(world, "batch.storage.files:note_blobs_deleted", "batch.operations.retention:remove_deleted_bytes")
    assert retention.remove_deleted_bytes(world) == 1
    assert retention.remove_deleted_bytes(world) == 0


def test_killed_between_the_file_and_the_batch_of_a_retry(sqlite_world: World) -> None:
    """The parent has no child yet: the next retry makes the one child."""
    world = sqlite_world
    batch = ingest(world, lines(2))
    cancel_batch(world, batch.project_id, batch.public_id)
    assert finalize_batch(world, batch.id, "one") == "cancelled"
    die_at(world, "batch.storage.batches:insert_batch", "tests.storage.test_crashes:retry", batch.public_id)
    child = retry_batch(world, default_project(world), batch.public_id)
    assert load(world, child).parent == batch.public_id
    with pytest.raises(Conflict):
        retry_batch(world, default_project(world), batch.public_id)


def retry(world: World, public_id: str) -> None:
    """What the dying process runs."""
    retry_batch(world, default_project(world), public_id)
