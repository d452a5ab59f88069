"""Cancel, expiry, pause and resume: what each does in each state."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from batch.domain.errors import Conflict, InvalidRequest
from batch.operations.cancel_batch import cancel_batch
from batch.operations.end_batches import end_due_batches, ring_waiting
from batch.operations.finalize import finalize_batch
from batch.operations.pause_batch import pause_batch, resume_batch
from batch.operations.read_results import read_results
from batch.operations.world import World
from batch.storage.batches import BatchRow
from batch.storage.claims import claim_slices
from batch.storage.engine import db_now
from batch.storage.jobs import Job
from batch.storage.tables import batch_lanes, batches, slices
from tests.harness.worlds import create, ingest, jsonl, load, make_world, read_lines, record, request_line


def running(world: World, count: int = 3, **fields: object) -> BatchRow:
    return ingest(world, jsonl([request_line(f"r{i}") for i in range(count)]), **fields)


def codes(world: World, batch: BatchRow) -> list[tuple[str, str]]:
    lines = read_lines(world, load(world, batch), "error") or []
    return [(line["custom_id"], line["error"]["code"]) for line in lines]


def claim(world: World, batch: BatchRow) -> int:
    with world.db.read() as conn:
        lane = conn.execute(sa.select(batch_lanes.c.lane_id).where(batch_lanes.c.batch_id == batch.id)).scalar_one()
    [claimed] = claim_slices(world.db, lane, "worker", want_lines=500)
    return claimed.slice_id


def change(world: World, batch: BatchRow, **values: object) -> None:
    with world.db.write() as conn:
        conn.execute(sa.update(batches).where(batches.c.id == batch.id).values(**values))


def test_cancelling_a_quiet_batch_seals_it_and_keeps_what_was_done(world: World) -> None:
    """Unsent lines become batch_cancelled and are not counted as failed."""
    batch = running(world)
    record(world, batch, {2: ("r1", True)})
    assert cancel_batch(world, batch.project_id, batch.public_id).status == "cancelling"
    assert load(world, batch).sealed_at is not None
    assert finalize_batch(world, batch.id, "test") == "cancelled"
    assert codes(world, batch) == [("r0", "batch_cancelled"), ("r2", "batch_cancelled")]
    assert (load(world, batch).completed, load(world, batch).failed) == (1, 0)


def test_a_worker_that_holds_lines_gets_the_grace_time(world: World) -> None:
    """Not sealed while a slice is leased, so that paid work can land; sealed when the grace time is over."""
    batch = running(world)
    slice_id = claim(world, batch)
    cancel_batch(world, batch.project_id, batch.public_id)
    assert end_due_batches(world) == 0
    record(world, batch, {1: ("r0", True)})
    change(world, batch, cancelling_at=1)
    assert end_due_batches(world) == 1
    record(world, batch, {2: ("r1", True)})
    assert load(world, batch).completed == 1, "a result after the seal is dropped"
    with world.db.read() as conn:
        state = conn.execute(sa.select(slices.c.state).where(slices.c.id == slice_id)).scalar_one()
    assert state == "cancelled"


def test_cancelling_again_changes_nothing(world: World) -> None:
    """Idempotent while cancelling and after."""
    batch = running(world)
    first = cancel_batch(world, batch.project_id, batch.public_id)
    assert cancel_batch(world, batch.project_id, batch.public_id).cancelling_at == first.cancelling_at
    finalize_batch(world, batch.id, "test")
    assert cancel_batch(world, batch.project_id, batch.public_id).status == "cancelled"


def test_a_batch_that_is_finalizing_or_ended_cannot_be_cancelled(world: World) -> None:
    """409, which the API marks as not worth a retry."""
    batch = running(world, 1)
    record(world, batch, {1: ("r0", True)})
    for status in ("finalizing", "completed"):
        assert load(world, batch).status == status
        with pytest.raises(Conflict, match=f"Cannot cancel a batch with status '{status}'"):
            cancel_batch(world, batch.project_id, batch.public_id)
        finalize_batch(world, batch.id, "test")


def test_a_cancelling_batch_whose_last_line_lands_is_cancelled_and_never_completed(world: World) -> None:
    """It is sealed by that result, and keeps its way."""
    batch = running(world, 1)
    claim(world, batch)
    cancel_batch(world, batch.project_id, batch.public_id)
    record(world, batch, {1: ("r0", True)})
    assert load(world, batch).sealed_at is not None
    assert finalize_batch(world, batch.id, "test") == "cancelled"
    assert codes(world, batch) == []


def test_an_overdue_batch_expires_with_what_was_done(world: World) -> None:
    """The rest becomes batch_expired; the status is in_progress until the files are there."""
    batch = running(world)
    record(world, batch, {1: ("r0", True)})
    assert end_due_batches(world) == 0
    change(world, batch, expires_at=1)
    assert end_due_batches(world) == 1
    assert load(world, batch).status == "in_progress"
    assert finalize_batch(world, batch.id, "test") == "expired"
    assert codes(world, batch) == [("r1", "batch_expired"), ("r2", "batch_expired")]
    assert load(world, batch).expired_at is not None


def test_a_window_that_passes_while_validating_expires_at_once(world: World) -> None:
    """Expiry acts from in_progress on: lines are read first, so that each is in the file."""
    batch = create(world, jsonl([request_line("a")]))
    change(world, batch, expires_at=1)
    assert end_due_batches(world) == 0
    from batch.operations.ingest import ingest_batch

    assert ingest_batch(world, batch.id, "test") == "started"
    assert finalize_batch(world, batch.id, "test") == "expired"
    assert codes(world, batch) == [("a", "batch_expired")]


def test_pause_is_a_flag_that_resume_lifts(world: World) -> None:
    """The status stays one that clients know."""
    batch = running(world)
    paused = pause_batch(world, batch.project_id, batch.public_id)
    assert (paused.status, paused.paused, paused.pause_reason) == ("in_progress", True, "person")
    assert pause_batch(world, batch.project_id, batch.public_id).pause_reason == "person"
    assert not resume_batch(world, batch.project_id, batch.public_id).paused


def test_a_spent_budget_needs_a_raise_to_resume(world: World) -> None:
    """Resuming without one says what was spent."""
    batch = running(world)
    change(world, batch, paused=True, pause_reason="budget", budget_usd=1.0, cost_usd=1.5)
    with pytest.raises(InvalidRequest, match=r"\$1\.5000 are spent of a budget of \$1\.0000"):
        resume_batch(world, batch.project_id, batch.public_id)
    resumed = resume_batch(world, batch.project_id, batch.public_id, budget_usd=3.0)
    assert (resumed.paused, resumed.budget_usd) == (False, 3.0)


def test_a_limit_that_is_raised_before_it_is_crossed_holds(world: World) -> None:
    """An answered raise is never dropped because the batch was not paused yet; one that is too low is refused."""
    batch = running(world)
    change(world, batch, budget_usd=1.0, cost_usd=0.9)
    raised = resume_batch(world, batch.project_id, batch.public_id, budget_usd=3.0, max_failure_share=0.5)
    assert (raised.paused, raised.budget_usd, raised.max_failure_share) == (False, 3.0, 0.5)
    with pytest.raises(InvalidRequest, match=r"\$0\.9000 are spent of a budget of \$0\.5000"):
        resume_batch(world, batch.project_id, batch.public_id, budget_usd=0.5)
    assert load(world, batch).budget_usd == 3.0


def test_a_first_budget_is_refused_where_no_price_is_known(world: World) -> None:
    """It would never stop anything."""
    batch = running(world)
    with pytest.raises(InvalidRequest, match=r"none is known for acme / .*Set `price`"):
        resume_batch(world, batch.project_id, batch.public_id, budget_usd=3.0)
    assert load(world, batch).budget_usd is None


def test_a_clock_that_is_set_back_holds_up_no_cancel(world: World) -> None:
    """Only a deadline waits for its time."""
    batch = running(world)
    change(world, batch, status="cancelling", cancelling_at=db_now() + 3_600_000)
    assert end_due_batches(world) == 1


def test_an_ended_batch_is_neither_paused_nor_resumed(world: World) -> None:
    """409, as for cancel."""
    batch = running(world)
    cancel_batch(world, batch.project_id, batch.public_id)
    with pytest.raises(Conflict):
        pause_batch(world, batch.project_id, batch.public_id)
    with pytest.raises(Conflict):
        resume_batch(world, batch.project_id, batch.public_id)


def test_a_paused_batch_can_be_cancelled(world: World) -> None:
    """Sealing lifts the pause."""
    batch = running(world)
    pause_batch(world, batch.project_id, batch.public_id)
    cancel_batch(world, batch.project_id, batch.public_id)
    assert (load(world, batch).paused, load(world, batch).sealed_at is not None) == (False, True)


def test_what_waits_without_a_bell_is_rung_again(world: World) -> None:
    """Only after the time in which a bell would have been answered."""
    waiting = create(world, jsonl([request_line("a")]))
    sealed = running(world)
    cancel_batch(world, sealed.project_id, sealed.public_id)
    assert (ring_waiting(world, Job.INGEST), ring_waiting(world, Job.FINALIZE)) == (0, 0)
    change(world, waiting, created_at=1)
    change(world, sealed, sealed_at=1)
    world.bells.rung.clear()  # type: ignore[attr-defined]
    assert (ring_waiting(world, Job.INGEST), ring_waiting(world, Job.FINALIZE)) == (1, 1)
    assert world.bells.rung == [("ingest", waiting.id), ("finalize", sealed.id)]  # type: ignore[attr-defined]


def test_results_are_read_behind_a_cursor_without_gaps(world: World) -> None:
    """Each page goes on where the last one ended; the last one says that it is."""
    batch = running(world, 5)
    for i in (3, 1, 4):
        record(world, batch, {i + 1: (f"r{i}", True)})
    first = read_results(world, batch.project_id, batch.public_id, after=0, limit=2)
    assert (len(first.lines), first.next_after, first.is_complete) == (2, 2, False)
    rest = read_results(world, batch.project_id, batch.public_id, after=first.next_after, limit=10)
    assert (len(rest.lines), rest.is_complete) == (1, False)
    cancel_batch(world, batch.project_id, batch.public_id)
    finalize_batch(world, batch.id, "test")
    last = read_results(world, batch.project_id, batch.public_id, after=rest.next_after, limit=10)
    assert (last.lines, last.is_complete) == ([], True)


def test_without_grace_time_a_held_batch_is_sealed_at_once(sqlite_url: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """cancel_grace_s = 0 gives up what is in flight."""
    world = make_world(sqlite_url, tmp_path, cancel_grace_s=0)
    batch = running(world)
    claim(world, batch)
    cancel_batch(world, batch.project_id, batch.public_id)
    assert load(world, batch).sealed_at is not None
