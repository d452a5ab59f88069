"""Finalize: files from sealed batches, each line once, published with the status or not at all."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from batch.operations import finalize as finalize_module
from batch.operations.cancel_batch import cancel_batch
from batch.operations.finalize import finalize_batch
from batch.operations.ingest import ingest_batch
from batch.operations.read_batches import get_batch_errors
from batch.operations.world import World
from batch.storage.batches import BatchRow
from batch.storage.tables import batches, files, webhook_deliveries
from tests.harness.worlds import create, ingest, jsonl, load, read_lines, record, request_line


def finished(world: World, oks: list[bool]) -> BatchRow:
    """A batch whose lines were all recorded, in reverse order."""
    batch = ingest(world, jsonl([request_line(f"r{i}") for i in range(len(oks))]))
    for i in reversed(range(len(oks))):
        record(world, batch, {i + 1: (f"r{i}", oks[i])})
    return load(world, batch)


def ids(world: World, batch: BatchRow, name: str) -> list[str] | None:
    lines = read_lines(world, batch, name)
    return None if lines is None else [line["custom_id"] for line in lines]


def test_files_are_in_input_order_whatever_the_order_of_results(world: World) -> None:
    """Files, status, counts and the webhook event appear together."""
    batch = finished(world, [True, False, True, True])
    assert batch.status == "finalizing"
    assert finalize_batch(world, batch.id, "test") == "completed"
    batch = load(world, batch)
    assert (batch.completed, batch.failed, batch.completed_at is not None) == (3, 1, True)
    assert ids(world, batch, "output") == ["r0", "r2", "r3"]
    assert ids(world, batch, "error") == ["r1"]
    with world.db.read() as conn:
        assert conn.execute(sa.select(webhook_deliveries.c.event)).scalars().all() == ["batch.completed"]
        names = conn.execute(sa.select(files.c.filename).where(files.c.purpose == "batch_output")).scalars().all()
    assert sorted(names) == [f"{batch.public_id}_error.jsonl", f"{batch.public_id}_output.jsonl"]


@pytest.mark.parametrize(("oks", "present"), [([True], "output"), ([False], "error")])
def test_a_file_without_lines_is_not_made(sqlite_world: World, oks: list[bool], present: str) -> None:
    """No failures: no error file; nothing but failures: no output file, and still completed."""
    batch = finished(sqlite_world, oks)
    assert finalize_batch(sqlite_world, batch.id, "test") == "completed"
    batch = load(sqlite_world, batch)
    assert [name for name in ("output", "error") if read_lines(sqlite_world, batch, name)] == [present]


def test_nothing_is_published_when_the_counts_disagree(world: World) -> None:
    """The batch stays, an error event is emitted, no file row appears."""
    batch = finished(world, [True, True])
    with world.db.write() as conn:
        conn.execute(sa.text("DELETE FROM results WHERE line = 2"))
    assert finalize_batch(world, batch.id, "test") == "mismatch"
    assert load(world, batch).status == "finalizing"
    with world.db.read() as conn:
        assert conn.execute(sa.select(files).where(files.c.purpose == "batch_output")).first() is None


def test_a_second_finalize_finds_nothing_to_do(world: World) -> None:
    """A doubled bell is harmless."""
    batch = finished(world, [True])
    assert finalize_batch(world, batch.id, "one") == "completed"
    assert finalize_batch(world, batch.id, "two") == "idle"


class Killed(BaseException):
    """What a kill −9 is to the code: nothing runs after it."""


def test_a_finalize_that_dies_before_publishing_is_done_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blobs are nobody's; the next one writes new ones and publishes once."""
    batch = finished(world, [True, False])
    publish = finalize_module._publish

    def die(*_: object) -> str:
        raise Killed

    monkeypatch.setattr(finalize_module, "_publish", die)
    with pytest.raises(Killed):
        finalize_batch(world, batch.id, "one")
    monkeypatch.setattr(finalize_module, "_publish", publish)
    with world.db.write() as conn:
        conn.execute(sa.update(batches).values(job_until=1))
    assert finalize_batch(world, batch.id, "two") == "completed"
    assert ids(world, load(world, batch), "output") == ["r0"]


def test_a_finalize_that_lost_its_lease_publishes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The zombie meets the epoch in its last transaction, which takes the file rows back with it."""
    batch = finished(world, [True])
    write = finalize_module.write_results

    def write_and_lose(*args: object) -> None:
        write(*args)  # type: ignore[arg-type]
        with world.db.write() as conn:
            conn.execute(sa.update(batches).values(job_epoch=batches.c.job_epoch + 1))

    monkeypatch.setattr(finalize_module, "write_results", write_and_lose)
    assert finalize_batch(world, batch.id, "zombie") == "lost"
    assert load(world, batch).status == "finalizing"
    with world.db.read() as conn:
        assert conn.execute(sa.select(files).where(files.c.purpose == "batch_output")).first() is None


def test_a_batch_cancelled_while_validating_has_every_line_in_its_error_file(world: World) -> None:
    """Readable custom_ids once each as batch_cancelled; the others as errors; ingest writes nothing any more."""
    batch = create(world, jsonl([request_line("a"), b"{", request_line("b", temperature=9), request_line("a")]))
    cancel_batch(world, batch.project_id, batch.public_id)
    assert ingest_batch(world, batch.id, "test") == "idle"
    assert finalize_batch(world, batch.id, "test") == "cancelled"
    batch = load(world, batch)
    lines = read_lines(world, batch, "error")
    assert lines is not None
    assert [(line["custom_id"], line["error"]["code"]) for line in lines] == [
        ("a", "batch_cancelled"),
        ("b", "batch_cancelled"),
    ]
    assert (batch.total, batch.completed, batch.failed, batch.output_file_id) == (2, 0, 0, None)
    found = get_batch_errors(world, [batch.id])[batch.id]
    assert [(error.code, error.line) for error in found] == [("invalid_json_line", 2), ("duplicate_custom_id", 4)]


def test_a_cancelled_batch_without_an_input_still_has_a_file(world: World) -> None:
    """Clients wait for ever for a terminal batch without one."""
    batch = create(world, "file-none")
    cancel_batch(world, batch.project_id, batch.public_id)
    assert finalize_batch(world, batch.id, "test") == "cancelled"
    assert read_lines(world, load(world, batch), "error") == []


def test_many_lines_cross_windows_without_loss(world: World) -> None:
    """Windows grow and shrink with what the lines weigh."""
    count = 1500
    batch = ingest(world, jsonl([request_line(f"r{i}") for i in range(count)]))
    record(world, batch, {i + 1: (f"r{i}", i % 7 != 0) for i in range(count)})
    assert finalize_batch(world, batch.id, "test") == "completed"
    batch = load(world, batch)
    assert ids(world, batch, "output") == [f"r{i}" for i in range(count) if i % 7]
    assert ids(world, batch, "error") == [f"r{i}" for i in range(count) if i % 7 == 0]
