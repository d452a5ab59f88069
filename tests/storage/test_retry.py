"""Retry: a new batch of what is not done, and the family's results as one."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from batch.domain.errors import Conflict, Forbidden, InvalidRequest
from batch.operations.cancel_batch import cancel_batch
from batch.operations.dedupe import answer_due_copies
from batch.operations.finalize import finalize_batch
from batch.operations.ingest import ingest_batch
from batch.operations.keys import set_project_limits
from batch.operations.read_files import list_files
from batch.operations.retention import purge_batch
from batch.operations.retry_batch import read_family, read_family_lines, retry_batch
from batch.operations.world import World
from batch.storage.batches import BatchRow
from batch.storage.tables import results
from tests.harness.worlds import default_project, ingest, jsonl, load, make_world, read_lines, record, request_line


def ended(world: World, oks: dict[int, bool], count: int = 4) -> BatchRow:
    """A batch of r0…, with these results, cancelled after them and finalized."""
    batch = ingest(world, jsonl([request_line(f"r{i}") for i in range(count)]), metadata={"k": "v"})
    record(world, batch, {i + 1: (f"r{i}", ok) for i, ok in oks.items()})
    if len(oks) < count:
        cancel_batch(world, batch.project_id, batch.public_id)
    finalize_batch(world, batch.id, "test")
    return load(world, batch)


def run_to_end(world: World, batch: BatchRow, names: list[str]) -> None:
    ingest_batch(world, batch.id, "test")
    record(world, batch, {i + 1: (name, True) for i, name in enumerate(names)})
    assert finalize_batch(world, batch.id, "test") == "completed"


def test_only_failed_and_cancelled_lines_run_again_under_their_names(world: World) -> None:
    """The child keeps endpoint, window, metadata and options, and knows its parent."""
    parent = ended(world, {0: True, 1: False, 3: True})
    child = retry_batch(world, default_project(world), parent.public_id)
    assert (child.parent, child.metadata, child.completion_window) == (parent.public_id, {"k": "v"}, "24h")
    run_to_end(world, child, ["r1", "r2"])
    lines = read_lines(world, load(world, child), "output")
    assert lines is not None
    assert [line["custom_id"] for line in lines] == ["r1", "r2"]


def test_a_family_reads_as_one(world: World) -> None:
    """Successes of all members; as errors only what the newest could not do."""
    parent = ended(world, {0: True, 1: False, 2: False, 3: True})
    child = retry_batch(world, default_project(world), parent.public_id)
    ingest_batch(world, child.id, "test")
    record(world, child, {1: ("r1", True), 2: ("r2", False)})
    finalize_batch(world, child.id, "test")
    for member in (parent, child):
        family = read_family(world, parent.project_id, member.public_id)
        assert [batch.id for batch in family] == [parent.id, child.id]
        done = b"".join(read_family_lines(world, parent.project_id, member.public_id))
        failed = b"".join(read_family_lines(world, parent.project_id, member.public_id, errors=True))
        assert sorted(name for name in (b"r0", b"r1", b"r2", b"r3") if name in done) == [b"r0", b"r1", b"r3"]
        assert (failed.count(b"\n"), b"r2" in failed) == (1, True)


def test_a_retry_of_any_member_continues_the_newest(world: World) -> None:
    """A family is a chain: no line can run twice."""
    parent = ended(world, {0: True, 1: False, 2: True, 3: False})
    project = default_project(world)
    child = retry_batch(world, project, parent.public_id)
    with pytest.raises(Conflict, match="still validating"):
        retry_batch(world, project, parent.public_id)
    ingest_batch(world, child.id, "test")
    record(world, child, {1: ("r1", False), 2: ("r3", True)})
    finalize_batch(world, child.id, "test")
    grandchild = retry_batch(world, project, parent.public_id)
    assert grandchild.parent == child.public_id
    run_to_end(world, grandchild, ["r1"])
    with pytest.raises(InvalidRequest, match="nothing to retry"):
        retry_batch(world, project, child.public_id)


def test_a_purged_batch_can_be_retried(world: World) -> None:
    """The files say what is done; rows are not needed."""
    parent = ended(world, {0: True})
    assert purge_batch(world, parent.id, "test") > 0
    child = retry_batch(world, default_project(world), parent.public_id)
    run_to_end(world, child, ["r1", "r2", "r3"])


def test_a_retry_that_is_refused_leaves_no_file(world: World) -> None:
    """Its input was written before the create could say no."""
    parent = ended(world, {0: True})
    set_project_limits(world, "default", max_priority="low")
    before = len(list_files(world, parent.project_id)[0])
    with pytest.raises(Forbidden):
        retry_batch(world, default_project(world), parent.public_id)
    assert len(list_files(world, parent.project_id)[0]) == before


def test_duplicates_take_the_answer_of_their_first_line(world: World) -> None:
    """Each under its own custom_id; the last one completes the batch."""
    lines = [request_line(name, content="same", seed=1) for name in ("a", "b", "c")]
    batch = ingest(world, jsonl(lines), options={"dedupe": True})
    assert answer_due_copies(world) == 0
    record(world, batch, {1: ("a", True)})
    assert answer_due_copies(world) == 2
    assert answer_due_copies(world) == 0
    assert finalize_batch(world, batch.id, "test") == "completed"
    written = read_lines(world, load(world, batch), "output")
    assert written is not None
    assert [line["custom_id"] for line in written] == ["a", "b", "c"]
    assert written[1]["batchmill"] == {"copy_of": "a"}


def test_a_copied_answer_is_ascii_where_the_settings_ask_for_it(sqlite_url: str, tmp_path: Path) -> None:
    """As every other line is."""
    world = make_world(sqlite_url, tmp_path, output_ascii=True)
    lines = [request_line(name, content="same", seed=1) for name in ("a", "ü")]
    batch = ingest(world, jsonl(lines), options={"dedupe": True})
    record(world, batch, {1: ("a", True)})
    assert answer_due_copies(world) == 1
    assert finalize_batch(world, batch.id, "test") == "completed"
    with world.db.read() as conn:
        texts = conn.execute(sa.select(results.c.output)).scalars().all()
    assert all(text.isascii() for text in texts)
    assert [line["custom_id"] for line in read_lines(world, load(world, batch), "output") or ()] == ["a", "ü"]
