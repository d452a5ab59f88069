"""Deleting a file that somebody uses: what happens then is decided, and the same each time."""

from __future__ import annotations

import gzip

import pytest
import sqlalchemy as sa

from batch.domain.errors import Conflict, NotFound
from batch.operations import retention
from batch.operations.finalize import finalize_batch
from batch.operations.ingest import ingest_batch
from batch.operations.read_batches import get_batch, get_batch_errors
from batch.operations.read_files import get_downloadable, get_file
from batch.operations.retention import delete_file
from batch.operations.retry_batch import read_family_lines, retry_batch
from batch.operations.world import World
from batch.storage.batches import BatchRow
from batch.storage.tables import batches, files, requests, results
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

INPUT = jsonl([request_line("a"), request_line("b")])


def finished(world: World, **fields: object) -> BatchRow:
    """One line done, one failed."""
    batch = ingest(world, INPUT, **fields)
    record(world, batch, {1: ("a", True), 2: ("b", False)})
    finalize_batch(world, batch.id, "test")
    return load(world, batch)


def rows_left(world: World, table: sa.Table) -> int:
    with world.db.read() as conn:
        return int(conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def test_an_input_deleted_before_it_was_read_fails_the_batch(world: World) -> None:
    """As if the file had never been: the batch says so, nothing is called."""
    batch = create(world, INPUT)
    delete_file(world, batch.project_id, batch.input_file)
    retention.remove_deleted_bytes(world)
    assert ingest_batch(world, batch.id, "test") == "failed"
    errors = get_batch_errors(world, [batch.id])[batch.id]
    assert [(e.code, e.param, e.line) for e in errors] == [("invalid_request", "file_id", None)]
    assert "Cannot find file" in errors[0].message


def test_an_input_deleted_while_it_runs_changes_nothing(world: World) -> None:
    """Large bodies are still read from it: the bytes stay until the end, and go then."""
    batch = ingest(world, jsonl([request_line("a", content="x" * 100_000), request_line("b")]))
    delete_file(world, batch.project_id, batch.input_file)
    assert retention.remove_deleted_bytes(world) == 0
    record(world, batch, {1: ("a", True), 2: ("b", True)})
    finalize_batch(world, batch.id, "test")
    assert load(world, batch).status == "completed"
    assert len(read_lines(world, load(world, batch), "output") or ()) == 2
    assert retention.remove_deleted_bytes(world) == 1


def test_an_expired_input_behaves_as_a_deleted_one(world: World) -> None:
    batch = create(world, INPUT)
    with world.db.write() as conn:
        conn.execute(sa.update(files).values(expires_at=1))
    assert ingest_batch(world, batch.id, "test") == "failed"


def test_an_input_deleted_afterwards_leaves_the_answers_and_forbids_a_retry(world: World) -> None:
    batch = finished(world)
    delete_file(world, batch.project_id, batch.input_file)
    retention.remove_deleted_bytes(world)
    assert len(read_lines(world, batch, "output") or ()) == 1
    with pytest.raises(Conflict, match="cannot be retried"):
        retry_batch(world, default_project(world), batch.public_id)
    assert get_batch(world, batch.project_id, batch.public_id).input_file == batch.input_file


def test_a_deleted_output_is_not_found_and_the_batch_still_names_it(world: World) -> None:
    """Its counts stay; a retry would answer done lines twice, so it is refused; nothing else breaks."""
    batch = finished(world)
    with world.db.read() as conn:
        output = conn.execute(sa.select(files.c.public_id).where(files.c.id == batch.output_file_id)).scalar_one()
    delete_file(world, batch.project_id, output)
    retention.remove_deleted_bytes(world)
    with pytest.raises(NotFound):
        get_file(world, batch.project_id, output)
    seen = get_batch(world, batch.project_id, batch.public_id)
    assert (seen.status, seen.output_file, seen.completed) == ("completed", output, 1)
    with pytest.raises(Conflict, match="cannot be retried"):
        retry_batch(world, default_project(world), batch.public_id)
    with pytest.raises(NotFound, match="deleted or has expired"):
        list(read_family_lines(world, batch.project_id, batch.public_id))


def test_one_file_of_several_batches_lives_as_long_as_one_of_them_runs(world: World) -> None:
    file_id = upload(world, INPUT)
    first, second = ingest(world, file_id), ingest(world, file_id)
    delete_file(world, first.project_id, file_id)
    for batch in (first, second):
        assert retention.remove_deleted_bytes(world) == 0
        record(world, batch, {1: ("a", True), 2: ("b", True)})
        finalize_batch(world, batch.id, "test")
    assert retention.remove_deleted_bytes(world) == 1


def test_a_gzip_input_is_freed_like_any_other(world: World) -> None:
    batch = ingest(world, gzip.compress(INPUT))
    delete_file(world, batch.project_id, batch.input_file)
    assert retention.remove_deleted_bytes(world) == 0
    record(world, batch, {1: ("a", True), 2: ("b", True)})
    finalize_batch(world, batch.id, "test")
    assert retention.remove_deleted_bytes(world) == 1


def test_expiries_are_the_callers_or_the_settings(world: World) -> None:
    """Input: 30 days from its upload. Output: 30 days from its making, or as the batch asked."""
    usual = finished(world)
    asked = finished(world, output_expires_after={"anchor": "created_at", "seconds": 3600})
    with world.db.read() as conn:
        lives = {
            row.id: (row.expires_at - row.created_at) // 1000 for row in conn.execute(sa.select(files))
        }
    assert lives[usual.input_file_id or 0] == lives[usual.output_file_id or 0] == 30 * 86_400
    assert lives[asked.output_file_id or 0] == lives[asked.error_file_id or 0] == 3600


def test_after_the_grace_rows_go_and_the_files_answer_everything(world: World) -> None:
    """Download and retry need no rows: both walk files."""
    batch = finished(world)
    with world.db.write() as conn:
        conn.execute(sa.update(batches).values(completed_at=1))
    while retention.purge_ended_batches(world, "test"):
        continue
    assert rows_left(world, requests) == rows_left(world, results) == 0
    with world.db.read() as conn:
        output = conn.execute(sa.select(files.c.public_id).where(files.c.id == batch.output_file_id)).scalar_one()
    assert b'"a"' in b"".join(world.blobs.read(get_downloadable(world, batch.project_id, output).blob))
    again = retry_batch(world, default_project(world), batch.public_id)
    assert ingest_batch(world, again.id, "test") == "started"
    assert load(world, again).total == 1
