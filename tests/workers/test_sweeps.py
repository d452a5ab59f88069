"""Sweeps: every stuck thing is found within a minute, by whoever is alive."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from batch.operations import retention
from batch.operations.end_batches import STUCK_AFTER_S
from batch.operations.world import World
from batch.settings import LEASE_S
from batch.storage import rescues
from batch.storage.claims import claim_slices
from batch.storage.engine import db_now
from batch.storage.jobs import JOB_LEASE_S
from batch.storage.leases import renew_if_held
from batch.storage.sweeps import SWEEP_LEASE_S, due_sweeps, ensure_sweeps, finish_sweep, take_if_due
from batch.storage.tables import batches, files, slices, sweeps
from batch.storage.watch import claimable_lanes
from tests.harness.rows import lapse_leases
from tests.harness.worlds import create, ingest, jsonl, request_line, upload
from workers import jobs as jobs_module
from workers.jobs import Jobs
from workers.sweeps import SWEEPS, run_sweep


def lines(count: int = 3) -> bytes:
    return jsonl([request_line(f"r{i}") for i in range(count)])


def rung(world: World, kind: str) -> list[int]:
    return [number for name, number in world.bells.rung if name == kind]  # type: ignore[attr-defined]


ONE = {"expire_leases": 5.0}


def test_every_kind_of_stuck_work_is_found_within_a_minute() -> None:
    """Counted from when it is stuck: its lease has run out, or its bell was lost."""
    assert max(SWEEPS[name] for name in ("expire_leases", "ring_lanes", "mend_slices", "wake_slices")) <= 60
    assert max(SWEEPS[name] for name in ("end_batches", "expire_files", "remove_bytes", "recount_lanes")) <= 60
    assert STUCK_AFTER_S + SWEEPS["ring_jobs"] <= 60
    assert JOB_LEASE_S + SWEEPS["ring_jobs"] <= 60, "even counted from the death of whoever held the job"
    assert SWEEP_LEASE_S + max(SWEEPS["expire_leases"], SWEEPS["ring_jobs"]) <= 60, "also when a sweeper died"
    assert LEASE_S <= 60


def test_a_sweep_whose_process_died_is_taken_over(world: World) -> None:
    """Its row's lease runs out; before that nobody else runs it."""
    ensure_sweeps(world.db, ONE)
    assert take_if_due(world.db, "expire_leases", every_s=5.0)
    assert not take_if_due(world.db, "expire_leases", every_s=5.0)
    with world.db.write() as conn:
        conn.execute(sa.update(sweeps).values(lease_until=db_now() - 1))
    with world.db.read() as conn:
        assert due_sweeps(conn, ONE) == ["expire_leases"]
    assert take_if_due(world.db, "expire_leases", every_s=5.0)


@pytest.mark.parametrize("column", ["due_at", "lease_until"])
def test_a_clock_that_is_set_back_stops_no_sweep(world: World, column: str) -> None:
    """What was written an hour ahead of now can only be from before."""
    ensure_sweeps(world.db, ONE)
    with world.db.write() as conn:
        conn.execute(sa.update(sweeps).values({column: db_now() + 3_600_000}))
    with world.db.read() as conn:
        assert due_sweeps(conn, ONE) == ["expire_leases"]
    assert take_if_due(world.db, "expire_leases", every_s=5.0)
    finish_sweep(world.db, "expire_leases", every_s=5.0, report="")
    assert not take_if_due(world.db, "expire_leases", every_s=5.0)


def test_slices_of_a_dead_worker_are_ready_again(world: World) -> None:
    batch = ingest(world, lines())
    with world.db.read() as conn:
        [lane] = claimable_lanes(conn)
    claim_slices(world.db, lane, "dead", want_lines=9)
    lapse_leases(world.db)
    assert run_sweep("expire_leases", world, "test").startswith("expired 1")
    with world.db.read() as conn:
        assert conn.execute(sa.select(slices.c.state).where(slices.c.batch_id == batch.id)).scalar_one() == "ready"


def test_a_look_that_waited_long_for_the_database_takes_no_slice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder waited too, and comes first: it renews, and nothing is asked again."""
    ingest(world, lines())
    with world.db.read() as conn:
        [lane] = claimable_lanes(conn)
    [claim] = claim_slices(world.db, lane, "alive", want_lines=9)
    lapse_leases(world.db)
    monkeypatch.setattr(rescues, "STALE_S", -1.0)
    assert run_sweep("expire_leases", world, "test").startswith("expired 0")
    assert renew_if_held(world.db, "alive", {claim.slice_id: claim.epoch}) == {claim.slice_id}


def test_after_an_outage_holders_renew_before_slices_are_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep is put off by the time of one renewal; afterwards it takes what nobody renewed."""
    jobs = Jobs(world.settings)
    ingest(world, lines())
    with world.db.read() as conn:
        [lane] = claimable_lanes(conn)
    claim_slices(world.db, lane, "dead", want_lines=9)
    lapse_leases(world.db)
    ensure_sweeps(world.db, SWEEPS)
    monkeypatch.setattr(jobs_module, "AWAY_S", -1.0)
    jobs.sweep("expire_leases")
    with world.db.write() as conn:
        assert conn.execute(sa.select(slices.c.state)).scalar_one() == "leased"
        conn.execute(sa.update(sweeps).values(due_at=1))
    monkeypatch.setattr(jobs_module, "AWAY_S", 60.0)
    jobs._patient_until = 0.0
    jobs.sweep("expire_leases")
    with world.db.read() as conn:
        assert conn.execute(sa.select(slices.c.state)).scalar_one() == "ready"
    jobs.stop()


def test_lost_bells_are_rung_again(world: World) -> None:
    """Of lanes with ready lines, of batches that nobody reads."""
    ingest(world, lines())
    waiting = create(world, lines())
    world.bells.rung.clear()  # type: ignore[attr-defined]
    with world.db.write() as conn:
        conn.execute(sa.update(batches).where(batches.c.id == waiting.id).values(created_at=1))
    run_sweep("ring_lanes", world, "test")
    run_sweep("ring_jobs", world, "test")
    assert len(rung(world, "drain")) == 1
    assert rung(world, "ingest") == [waiting.id]


def test_half_written_files_go_after_a_day(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed writer leaves beside the blob that never was."""
    writer = world.blobs.writer("inputs/aa/aa22")
    writer.write(b"x" * (20 << 20))
    assert run_sweep("sweep_blobs", world, "test") == "removed 0"
    assert world.blobs.root is not None
    left = [path for path in world.blobs.root.rglob("*") if path.is_file()]
    assert len(left) == 1
    monkeypatch.setattr(retention, "ORPHAN_AFTER_S", -10)
    assert run_sweep("sweep_blobs", world, "test") == "removed 1"
    assert not left[0].exists()


def test_overdue_deletions_are_made_good(world: World) -> None:
    """A file past its time disappears, and its bytes with the next sweep."""
    file_id = upload(world, b"{}")
    with world.db.write() as conn:
        conn.execute(sa.update(files).where(files.c.public_id == file_id).values(expires_at=1))
    assert run_sweep("expire_files", world, "test") == "expired 1"
    assert run_sweep("remove_bytes", world, "test") == "removed 1"
    assert list(world.blobs.list()) == []
