"""Slices without a holder: crashes are counted, culprits isolated, nothing stays lost."""

from __future__ import annotations

import sqlalchemy as sa

from batch.storage.claims import claim_slices
from batch.storage.engine import Database, db_now
from batch.storage.lanes import pause_lane
from batch.storage.packing import unpack_lines
from batch.storage.rescues import (
    close_resolved,
    cut_missing_lines,
    expire_leases,
    hop_slices,
    recount_lanes,
    stranded_batches,
    take_doomed,
)
from batch.storage.results import record_group
from batch.storage.tables import batch_lanes, slices
from tests.harness.rows import A_DOLLAR_A_LINE, batch_row, lapse_leases, make_batch, make_lane, result_of


def crash(db: Database, lane: int, owner: str = "w") -> list[list[int]]:
    """Every ready slice is claimed by a process that dies; the line lists it held."""
    held = [c.lines for c in claim_slices(db, lane, owner, want_lines=10_000, max_slices=1000)]
    lapse_leases(db)
    expire_leases(db)
    return held


def test_a_line_that_kills_every_worker_is_isolated_and_only_it_is_given_up(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 4, per_slice=4)
    culprit, rounds = 3, 0
    while not (doomed := take_doomed(db, "sweep")):
        rounds += 1
        assert rounds < 30
        for claim in claim_slices(db, lane, "w", want_lines=10_000, max_slices=100):
            if culprit not in claim.lines:
                record_group(db, [result_of(claim, line) for line in claim.lines], "w", [claim])
        lapse_leases(db)
        expire_leases(db)
    assert [item.line for item in doomed] == [culprit]
    for waited in claim_slices(db, lane, "w", want_lines=10):  # one solo line at a time: it may have stood behind
        record_group(db, [result_of(waited, line) for line in waited.lines], "w", [waited])
    assert batch_row(db, batch).completed == 3


def test_a_result_clears_suspicion(db: Database) -> None:
    lane = make_lane(db)
    make_batch(db, [lane], 4, per_slice=4)
    crash(db, lane)
    crash(db, lane)
    [claim] = claim_slices(db, lane, "w", want_lines=4)
    assert claim.suspicion == 2
    record_group(db, [result_of(claim, 1)], "w")
    lapse_leases(db)
    expire_leases(db)
    [again] = claim_slices(db, lane, "w", want_lines=4)
    assert (again.lines, again.suspicion) == ([2, 3, 4], 1)


def test_an_expired_slice_without_open_lines_is_done(db: Database) -> None:
    lane = make_lane(db)
    make_batch(db, [lane], 8, per_slice=4)
    [claim] = claim_slices(db, lane, "w", want_lines=4)
    record_group(db, [result_of(claim, line) for line in claim.lines], "w")
    lapse_leases(db)
    expire_leases(db)
    with db.read() as conn:
        assert conn.execute(sa.select(slices.c.state).where(slices.c.id == claim.slice_id)).scalar_one() == "done"


def test_an_expired_reserve_returns_to_the_budget(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 4, budget_usd=100)
    assert claim_slices(db, lane, "w", want_lines=4, cost_of=A_DOLLAR_A_LINE)
    assert batch_row(db, batch).reserved_usd == 4
    lapse_leases(db)
    expire_leases(db)
    assert batch_row(db, batch).reserved_usd == 0


def test_a_paused_lane_hands_its_ready_slices_to_the_next_one(db: Database) -> None:
    first, second, third = make_lane(db, "a"), make_lane(db, "b"), make_lane(db, "c")
    make_batch(db, [first, second, third], 20)
    pinned = make_batch(db, [first], 10)
    assert hop_slices(db, first) == 0
    with db.write() as conn:
        pause_lane(conn, [first, second], 600, "bad_key", "401")
    assert hop_slices(db, first) == 2
    assert len(claim_slices(db, third, "w", want_lines=100)) == 2
    with db.read() as conn:
        kept = conn.execute(sa.select(slices.c.lane_id).where(slices.c.batch_id == pinned)).scalar_one()
    assert kept == first


def test_a_ready_slice_whose_lines_all_have_results_is_closed(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 20)
    [claim] = claim_slices(db, lane, "w", want_lines=10)
    lapse_leases(db)
    expire_leases(db)
    record_group(db, [result_of(claim, line) for line in claim.lines], "w")  # a zombie's successes
    assert close_resolved(db)[0] == 1
    with db.read() as conn:
        left = conn.execute(sa.select(slices.c.lines).where(slices.c.batch_id == batch, slices.c.state == "ready"))
        assert unpack_lines(left.scalar_one()) == list(range(11, 21))


def test_lines_that_stand_in_no_slice_are_cut_anew(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 20)
    make_batch(db, [lane], 20)
    with db.write() as conn:
        conn.execute(sa.update(slices).where(slices.c.batch_id == batch, slices.c.position == 11).values(state="done"))
    with db.read() as conn:
        assert stranded_batches(conn) == [batch]
    assert cut_missing_lines(db, batch) == 10
    assert cut_missing_lines(db, batch) == 0
    with db.read() as conn:
        assert stranded_batches(conn) == []


def test_wrong_counters_are_mended_and_finished_pairs_forgotten(db: Database) -> None:
    lane = make_lane(db)
    good, over = make_batch(db, [lane], 20), make_batch(db, [lane], 20, sealed_at=1)
    with db.write() as conn:
        conn.execute(sa.update(batch_lanes).values(ready_lines=0, leased_lines=77))
    assert claim_slices(db, lane, "w", want_lines=10) == []
    recount_lanes(db)
    with db.read() as conn:
        rows = conn.execute(sa.select(batch_lanes.c.batch_id, batch_lanes.c.ready_lines, batch_lanes.c.leased_lines))
        assert [tuple(row) for row in rows] == [(good, 20, 0)]
    assert over and claim_slices(db, lane, "w", want_lines=10)


def test_a_waiting_slice_keeps_its_time_when_counters_are_mended(db: Database) -> None:
    lane = make_lane(db)
    make_batch(db, [lane], 10)
    with db.write() as conn:
        conn.execute(sa.update(slices).values(not_before=db_now() + 60_000))
    recount_lanes(db)
    with db.read() as conn:
        assert conn.execute(sa.select(batch_lanes.c.ready_lines)).scalar_one() == 0
