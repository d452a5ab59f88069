"""Retention: what is removed, when, and what is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import sqlalchemy as sa

from batch.domain.errors import NotFound
from batch.files.blobs import new_blob_name
from batch.operations import retention
from batch.operations.finalize import finalize_batch
from batch.operations.read_files import get_downloadable, get_file, list_files
from batch.operations.retention import delete_file
from batch.operations.world import World
from batch.storage.batches import BatchRow
from batch.storage.tables import batches, files, requests, results, slices
from tests.harness.worlds import default_project, ingest, jsonl, load, read_lines, record, request_line, upload


def completed(world: World, count: int = 3) -> BatchRow:
    batch = ingest(world, jsonl([request_line(f"r{i}") for i in range(count)]))
    record(world, batch, {i + 1: (f"r{i}", True) for i in range(count)})
    finalize_batch(world, batch.id, "test")
    return load(world, batch)


def count(world: World, table: sa.Table) -> int:
    with world.db.read() as conn:
        return int(conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def test_rows_of_ended_batches_go_after_a_day_and_files_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bounded passes; running batches are not touched."""
    monkeypatch.setattr(retention, "_ROWS_PER_PASS", 2)
    old = completed(world, 5)
    open_batch = ingest(world, jsonl([request_line("a")]))
    assert retention.purge_ended_batches(world, "test") == 0
    with world.db.write() as conn:
        conn.execute(sa.update(batches).where(batches.c.id == old.id).values(completed_at=1))
    assert retention.purge_ended_batches(world, "test") == 11
    assert retention.purge_ended_batches(world, "test") == 0
    assert (count(world, requests), count(world, results), count(world, slices)) == (1, 0, 1)
    assert load(world, old).purged_at is not None
    lines = read_lines(world, load(world, old), "output")
    assert lines is not None
    assert len(lines) == 5
    assert load(world, open_batch).status == "in_progress"


def test_a_deleted_file_is_gone_at_once_and_its_bytes_soon(world: World) -> None:
    """404 for its owner; the blob goes with the next pass."""
    project = default_project(world)
    file_id = upload(world, jsonl([request_line("a")]))
    blob = get_file(world, project.id, file_id).blob
    delete_file(world, project.id, file_id)
    with pytest.raises(NotFound, match=f"No such File object: {file_id}"):
        get_file(world, project.id, file_id)
    with pytest.raises(NotFound):
        delete_file(world, project.id, file_id)
    assert retention.remove_deleted_bytes(world) == 1
    assert retention.remove_deleted_bytes(world) == 0
    with pytest.raises(NotFound):
        world.blobs.size(blob)


def test_the_input_of_a_running_batch_keeps_its_bytes(world: World) -> None:
    """Large bodies are read from it; they go when the batch has ended."""
    batch = ingest(world, jsonl([request_line("a")]))
    delete_file(world, batch.project_id, batch.input_file)
    assert retention.remove_deleted_bytes(world) == 0
    record(world, batch, {1: ("a", True)})
    finalize_batch(world, batch.id, "test")
    assert retention.remove_deleted_bytes(world) == 1


def test_expired_files_disappear_like_deleted_ones(world: World) -> None:
    """Also before the pass has marked them."""
    project = default_project(world)
    file_id = upload(world, jsonl([request_line("a")]))
    with world.db.write() as conn:
        conn.execute(sa.update(files).values(expires_at=1))
    with pytest.raises(NotFound):
        get_file(world, project.id, file_id)
    assert retention.expire_files(world) == 1
    assert retention.remove_deleted_bytes(world) == 1


def test_blobs_without_a_row_go_after_a_day(world: World) -> None:
    """Younger ones may be on their way to a row; those with a row stay."""
    kept = get_file(world, default_project(world).id, upload(world, jsonl([request_line("a")]))).blob
    orphans = [new_blob_name("inputs"), new_blob_name("outputs")]
    for name in orphans:
        writer = world.blobs.writer(name)
        writer.write(b"x")
        writer.commit()
    assert retention.sweep_orphan_blobs(world) == 0
    root = world.blobs.root
    assert root is not None
    half_written = root / (orphans[0] + "#1")
    half_written.write_bytes(b"half")
    for path in [root / kept, half_written, *(root / name for name in orphans)]:
        os.utime(path, (1, 1))
    assert retention.sweep_orphan_blobs(world) == 3
    assert world.blobs.size(kept) > 0
    assert not half_written.exists()


def test_files_are_listed_newest_first_in_pages(world: World, tmp_path: Path) -> None:
    """The cursor is the last file of the page before."""
    project = default_project(world)
    made = [upload(world, jsonl([request_line("a")]), f"{i}.jsonl") for i in range(5)]
    first, more = list_files(world, project.id, limit=3)
    assert ([file.public_id for file in first], more) == (made[:1:-1], True)
    rest, more = list_files(world, project.id, limit=3, after=first[-1].public_id)
    assert ([file.public_id for file in rest], more) == (made[1::-1], False)
    oldest, _ = list_files(world, project.id, limit=1, order="asc", purpose="batch")
    assert oldest[0].public_id == made[0]


def test_content_is_read_in_ranges(world: World) -> None:
    """For downloads with Range."""
    content = jsonl([request_line("a")])
    project = default_project(world)
    file = get_downloadable(world, project.id, upload(world, content))
    assert b"".join(world.blobs.read(file.blob, 3, 9)) == content[3:9]
    assert file.size_bytes == len(content)
