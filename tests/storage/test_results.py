"""Recording: each line once, counted by what was inserted, sealed by the last one."""

from __future__ import annotations

import threading

import sqlalchemy as sa

from batch.storage.claims import claim_slices
from batch.storage.engine import Database, db_now
from batch.storage.results import record_group, results_after
from batch.storage.tables import batches, line_progress
from tests.harness.rows import batch_row, make_batch, make_lane, result_of


def test_counts_usage_cost_and_facts_advance_with_the_rows(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 10)
    [claim] = claim_slices(db, lane, "w", want_lines=10)
    rows = [result_of(claim, n, cost_usd=0.25, facts=("emulated:n",)) for n in (1, 2, 3)]
    record_group(db, [*rows, result_of(claim, 4, ok=False)], "w")
    row = batch_row(db, batch)
    assert (row.completed, row.failed, row.last_seq, row.input_tokens, row.output_tokens) == (3, 1, 4, 40, 20)
    assert (row.cost_usd, row.unpriced, row.report) == (0.75, 1, {"emulated:n": 3})


def test_a_line_recorded_twice_counts_once_and_leaves_no_gap(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 10)
    [claim] = claim_slices(db, lane, "w", want_lines=10)
    record_group(db, [result_of(claim, 1), result_of(claim, 2)], "w")
    report = record_group(db, [result_of(claim, n) for n in (2, 3, 3, 1, 4)], "w")
    assert (report.recorded, report.dropped["duplicate"]) == (2, 3)
    with db.read() as conn:
        seen = [(row.seq, row.line) for row in results_after(conn, batch, 0, 100)]
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_the_first_result_wins_also_when_it_is_a_failure(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 10)
    [claim] = claim_slices(db, lane, "w", want_lines=10)
    record_group(db, [result_of(claim, 1, ok=False)], "w")
    assert record_group(db, [result_of(claim, 1)], "w").dropped["duplicate"] == 1
    assert batch_row(db, batch).failed == 1


def test_the_last_result_seals_the_batch_in_the_same_commit(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 3)
    [claim] = claim_slices(db, lane, "w", want_lines=10)
    assert record_group(db, [result_of(claim, 1), result_of(claim, 2)], "w").sealed_batches == []
    assert record_group(db, [result_of(claim, 3)], "w", [claim]).sealed_batches == [batch]
    row = batch_row(db, batch)
    assert row.status == "finalizing" and row.sealed_at and row.finalizing_at


def test_a_cancelling_batch_is_sealed_but_stays_cancelling(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 2)
    [claim] = claim_slices(db, lane, "w", want_lines=10)
    with db.write() as conn:
        conn.execute(sa.update(batches).values(status="cancelling", cancelling_at=db_now()))
    record_group(db, [result_of(claim, 1), result_of(claim, 2)], "w")
    row = batch_row(db, batch)
    assert row.status == "cancelling" and row.sealed_at


def test_nothing_is_recorded_after_the_seal(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 5)
    [claim] = claim_slices(db, lane, "w", want_lines=10)
    with db.write() as conn:
        conn.execute(sa.update(batches).values(sealed_at=db_now()))
    report = record_group(db, [result_of(claim, 1)], "w")
    assert (report.recorded, report.dropped["sealed"]) == (0, 1)
    assert batch_row(db, batch).completed == 0


def test_a_crossed_budget_pauses_the_batch_in_the_same_commit(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 10, budget_usd=1.0)
    [claim] = claim_slices(db, lane, "w", want_lines=10)
    record_group(db, [result_of(claim, n, cost_usd=0.4) for n in (1, 2)], "w")
    assert not batch_row(db, batch).paused
    assert record_group(db, [result_of(claim, 3, cost_usd=0.4)], "w").paused_batches == [batch]
    assert batch_row(db, batch).pause_reason == "budget"


def test_too_many_failures_pause_the_batch(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 100, per_slice=100, max_failure_share=0.1)
    [claim] = claim_slices(db, lane, "w", want_lines=100)
    record_group(db, [result_of(claim, n, ok=False) for n in range(1, 11)], "w")
    assert not batch_row(db, batch).paused  # too few to judge
    record_group(db, [result_of(claim, n, ok=False) for n in range(11, 31)], "w")
    assert batch_row(db, batch).pause_reason == "failures"


def test_progress_is_forgotten_with_the_result(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 5)
    with db.write() as conn:
        conn.execute(sa.insert(line_progress).values(batch_id=batch, line=2, progress={"attempts": 1}))
    [claim] = claim_slices(db, lane, "w", want_lines=10)
    record_group(db, [result_of(claim, 2)], "w")
    with db.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(line_progress)).scalar_one() == 0


def test_groups_of_many_batches_from_many_recorders_do_not_deadlock(db: Database) -> None:
    """Two recorders with the same twelve batches in opposite orders."""
    lane = make_lane(db)
    ids = [make_batch(db, [lane], 20, per_slice=5) for _ in range(12)]
    claims = claim_slices(db, lane, "w", want_lines=10_000, max_slices=1000)
    failures: list[BaseException] = []

    def record(order: int) -> None:
        try:
            mine = claims[::order]
            for index in range(5):
                record_group(db, [result_of(c, c.lines[index]) for c in mine if index < len(c.lines)], "w", mine)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=record, args=(order,)) for order in (1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert {batch_row(db, i).completed for i in ids} == {20}
