"""A sample of an ended batch sent again: which lines, and what the comparison says."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from batch.domain.errors import Conflict
from batch.domain.result import LineResult
from batch.operations.finalize import finalize_batch
from batch.operations.ingest import ingest_batch
from batch.operations.replay_batch import compare_replay, replay_batch
from batch.operations.world import World
from batch.storage.batches import BatchRow
from batch.storage.ingest import stored_lines
from batch.storage.results import record_group
from tests.harness.worlds import ingest, jsonl, load, make_world, request_line


def answer_all(world: World, batch: BatchRow, word: str, prints: str) -> None:
    """Every line answered by its custom_id and `word`, and the files written."""
    with world.db.read() as conn:
        lines = [(row.line, row.custom_id) for row in stored_lines(conn, batch.id)]
    rows = []
    for line, custom_id in lines:
        said = word if custom_id == "c0" else "the same"
        choice = {"index": 0, "message": {"content": said}, "finish_reason": "stop"}
        body = {"choices": [choice], "system_fingerprint": prints}
        output = {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "batchmill": {"seed": "sent"}}
        rows.append(LineResult(batch.id, line, custom_id, True, orjson.dumps(output)))
    record_group(world.db, rows, "test")
    finalize_batch(world, batch.id, "test")


@pytest.fixture
def world(sqlite_url: str, tmp_path: Path) -> World:
    return make_world(sqlite_url, tmp_path)


def test_a_sample_is_spread_over_the_answers_and_compared_by_what_was_said(world: World) -> None:
    """Ids and times always differ; words, calls and the reason to stop count."""
    old = ingest(world, jsonl([request_line(f"c{i}", seed=1) for i in range(10)]))
    answer_all(world, old, "first", "fp_a")
    again = replay_batch(world, old.public_id, 5)
    ingest_batch(world, again.id, "test")
    with world.db.read() as conn:
        assert [row.custom_id for row in stored_lines(conn, again.id)] == ["c0", "c2", "c4", "c6", "c8"]
    answer_all(world, again, "second", "fp_b")
    found = compare_replay(world, old.public_id, again.public_id)
    assert (found.sent, found.same, found.different, found.unanswered, found.seeded) == (5, 4, ["c0"], 0, 5)
    assert (found.before, found.now) == ({"fp_a": 5}, {"fp_b": 5})
    assert load(world, again).parent_id is None


def test_a_batch_that_runs_is_not_sent_again(world: World) -> None:
    """There is nothing yet to compare with."""
    batch = ingest(world, jsonl([request_line("a")]))
    with pytest.raises(Conflict):
        replay_batch(world, batch.public_id, 5)
