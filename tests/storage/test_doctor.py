"""The doctor finds each kind of planted damage by its name and says what mends it; sweeps mend what they can."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from batch.operations import doctor, retention
from batch.operations.doctor import Finding, examine
from batch.operations.finalize import finalize_batch
from batch.operations.world import World
from batch.storage.batches import BatchRow
from batch.storage.claims import claim_slices
from batch.storage.packing import pack_lines
from batch.storage.rescues import cut_missing_lines, stranded_batches
from batch.storage.slices import save_progress
from batch.storage.tables import batch_lanes, batches, results, slices
from batch.storage.watch import claimable_lanes
from tests.harness.worlds import ingest, jsonl, load, record, request_line
from workers.sweeps import run_sweep


def running(world: World) -> BatchRow:
    return ingest(world, jsonl([request_line(f"r{i}") for i in range(3)]))


def ended(world: World) -> BatchRow:
    batch = running(world)
    record(world, batch, {1: ("r0", True), 2: ("r1", True), 3: ("r2", False)})
    assert finalize_batch(world, batch.id, "test") == "completed"
    return load(world, batch)


def change(world: World, table: sa.Table, **values: Any) -> None:
    with world.db.write() as conn:
        conn.execute(sa.update(table).values(**values))


def findings(world: World) -> dict[str, Finding]:
    return {found.check: found for found in examine(world) if found.verdict != "ok" and found.check != "workers"}


def test_a_healthy_place_has_no_finding(world: World) -> None:
    ended(world)
    running(world)
    assert findings(world) == {}


def miscount(world: World) -> None:
    ended(world)
    change(world, batches, completed=1, failed=2)


def lose_a_result(world: World) -> None:
    ended(world)
    with world.db.write() as conn:
        conn.execute(sa.delete(results).where(results.c.line == 2))


def end_without_files(world: World) -> None:
    ended(world)
    change(world, batches, output_file_id=None)


def lose_bytes(world: World) -> None:
    ended(world)
    for name, _, _ in list(world.blobs.list("outputs")):
        world.blobs.delete(name)


def truncate_bytes(world: World) -> None:
    ended(world)
    name, size, _ = next(world.blobs.list("outputs"))
    with (world.blobs.root / name).open("r+b") as file:  # type: ignore[operator]
        file.truncate(size - 1)


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (miscount, "counts"), (lose_a_result, "counts"), (end_without_files, "endings"), (lose_bytes, "files"),
        (truncate_bytes, "files"),
    ],
)  # fmt: skip
def test_a_broken_promise_is_wrong_and_says_what_to_do(sqlite_world: World, damage: Any, check: str) -> None:
    """Nothing mends these by itself: a person must know."""
    damage(sqlite_world)
    found = findings(sqlite_world)[check]
    assert found.verdict == "wrong"
    assert found.mend


def leave_a_lease(world: World) -> str:
    running(world)
    with world.db.read() as conn:
        [lane] = claimable_lanes(conn)
    claim_slices(world.db, lane, "dead", want_lines=9)
    change(world, slices, lease_until=1)
    return "expire_leases"


def strand_lines(world: World) -> str:
    running(world)
    change(world, slices, state="done")
    change(world, batch_lanes, ready_lines=0)
    return "mend_slices"


def miscount_a_lane(world: World) -> str:
    running(world)
    change(world, batch_lanes, ready_lines=70)
    return "recount_lanes"


def leave_slices_of_an_ended_batch(world: World) -> str:
    ended(world)
    change(world, slices, state="ready")
    change(world, batches, status="expired", expired_at=2, completed_at=None, sealed_at=1)
    return "mend_slices"


def leave_progress_of_a_done_line(world: World) -> str:
    batch = ended(world)
    with world.db.write() as conn:
        save_progress(conn, batch.id, [(1, {"spent": 1}, 0.0)])
    return "mend_slices"


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (leave_a_lease, "leases"), (strand_lines, "slices"), (miscount_a_lane, "counters"),
        (leave_slices_of_an_ended_batch, "leftovers"), (leave_progress_of_a_done_line, "leftovers"),
    ],
)  # fmt: skip
def test_what_a_sweep_mends_is_a_warning_until_it_has(world: World, damage: Any, check: str) -> None:
    """Found by the doctor, gone after the sweep that owns it."""
    sweep = damage(world)
    assert findings(world)[check].verdict == "warning"
    run_sweep(sweep, world, "test")
    run_sweep("recount_lanes", world, "test")
    assert check not in findings(world)


def test_lines_that_take_another_lines_answer_are_no_finding(world: World) -> None:
    """They stand in no slice on purpose; one line beside them that is missing is found."""
    lines = [request_line(name, content="same", seed=1) for name in "abc"]
    batch = ingest(world, jsonl([*lines, request_line("d")]), options={"dedupe": True})
    with world.db.write() as conn:
        assert stranded_batches(conn) == []
        conn.execute(sa.update(slices).values(lines=pack_lines([1]), line_count=1))
        assert stranded_batches(conn) == [batch.id]
    assert cut_missing_lines(world.db, batch.id) == 1


def test_a_job_that_nobody_does_is_found_and_rung(world: World) -> None:
    batch = running(world)
    record(world, batch, {n: (f"r{n - 1}", True) for n in (1, 2, 3)})
    change(world, batches, sealed_at=1)
    assert findings(world)["jobs"].verdict == "warning"
    run_sweep("ring_jobs", world, "test")
    assert ("finalize", batch.id) in world.bells.rung  # type: ignore[attr-defined]


def test_old_bytes_without_a_file_are_found_and_removed(sqlite_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = sqlite_world
    writer = world.blobs.writer("inputs/aa/aa11")
    writer.write(b"left behind")
    writer.commit()
    monkeypatch.setattr(doctor, "ORPHAN_AFTER_S", -10)
    monkeypatch.setattr(retention, "ORPHAN_AFTER_S", -10)
    assert findings(world)["orphans"].verdict == "warning"
    run_sweep("sweep_blobs", world, "test")
    assert findings(world) == {}


def test_a_database_that_is_damaged_is_called_so(sqlite_world: World) -> None:
    """SQLite's own check is asked."""
    world = sqlite_world
    ended(world)
    with world.db.write() as conn:
        conn.exec_driver_sql("PRAGMA writable_schema=ON")
        conn.exec_driver_sql(
            "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'lanes') "
            "WHERE name = 'sweeps'"
        )
    world.db.close()
    assert findings(world)["database"].verdict == "wrong"
