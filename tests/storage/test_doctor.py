"""The doctor finds what breaks a promise, and the explanation tells why a batch stands still."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from batch.domain.errors import NotFound
from batch.operations.doctor import examine
from batch.operations.explain_batch import explain_batch
from batch.operations.finalize import finalize_batch
from batch.operations.pause_provider import pause_provider, resume_provider
from batch.operations.world import World
from batch.storage import lanes
from batch.storage.tables import batches, files
from tests.harness.worlds import default_project, ingest, jsonl, load, record, request_line


def wrong(world: World) -> dict[str, str]:
    return {finding.check: finding.detail for finding in examine(world) if finding.verdict == "wrong"}


def test_a_sound_directory_has_no_finding(world: World) -> None:
    """Before, during and after a batch."""
    assert wrong(world) == {}
    batch = ingest(world, jsonl([request_line("a"), request_line("b")]))
    assert wrong(world) == {}
    record(world, batch, {1: ("a", True), 2: ("b", False)})
    finalize_batch(world, batch.id, "test")
    assert load(world, batch).status == "completed"
    assert wrong(world) == {}


def test_counts_that_disagree_with_results_are_found(world: World) -> None:
    """The batch is named."""
    batch = ingest(world, jsonl([request_line("a"), request_line("b")]))
    record(world, batch, {1: ("a", True)})
    with world.db.write() as conn:
        conn.execute(sa.update(batches).values(completed=2))
    assert batch.public_id in wrong(world)["counts"]


def test_missing_bytes_are_found(world: World) -> None:
    """A file whose blob is gone, or cut short."""
    batch = ingest(world, jsonl([request_line("a")]))
    with world.db.read() as conn:
        blob = conn.execute(sa.select(files.c.blob)).scalar_one()
    world.blobs.delete(blob)
    assert f"{batch.input_file} (no bytes)" in wrong(world)["files"]


def test_an_explanation_tells_the_pause_and_its_mend(world: World) -> None:
    """With the counts that `status` shows."""
    project = default_project(world)
    batch = ingest(world, jsonl([request_line("a"), request_line("b")]))
    record(world, batch, {1: ("a", False)})
    with world.db.write() as conn:
        lanes.pause_lane_for(conn, lanes.find_lanes(conn, provider="acme"), 60, "bad_key", "answered 401")
    story = explain_batch(world, project.id, batch.public_id)
    (lane,) = story["lanes"]
    assert (lane["paused"]["code"], lane["paused"]["reason"]) == ("bad_key", "answered 401")
    assert story["counts"]["waiting"] == 1
    assert story["failures"] == [{"code": "unknown", "count": 1, "lines": (1,)}]


def test_a_batch_that_nobody_works_on_says_so(world: World) -> None:
    """No worker has a heartbeat here."""
    batch = ingest(world, jsonl([request_line("a")]))
    assert "No worker is running" in explain_batch(world, default_project(world).id, batch.public_id)["idle"]


def test_another_project_sees_nothing(world: World) -> None:
    """An explanation is as private as its batch."""
    batch = ingest(world, jsonl([request_line("a")]))
    with pytest.raises(NotFound):
        explain_batch(world, default_project(world).id + 1, batch.public_id)


def test_a_provider_is_paused_and_resumed_by_hand(world: World) -> None:
    """One that was never used cannot be."""
    ingest(world, jsonl([request_line("a"), request_line("b", model="m2")]))
    assert pause_provider(world, "acme", model="m2") == 1
    assert pause_provider(world, "acme") == 2
    assert resume_provider(world, "acme") == 2
    with pytest.raises(NotFound, match="has served no batch here yet"):
        pause_provider(world, "nobody")
