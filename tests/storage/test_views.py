"""What workers and people ask of the rows, in one statement each."""

from __future__ import annotations

from batch.storage.claims import claim_slices
from batch.storage.engine import Database
from batch.storage.explain import failures_of_batch, lane_work
from batch.storage.lanes import pause_lane
from batch.storage.results import record_group
from batch.storage.watch import watch_batches, watch_pauses
from tests.harness.rows import make_batch, make_lane, result_of


def test_why_no_further_line_of_a_batch_may_be_sent(db: Database) -> None:
    lane = make_lane(db)
    runs, paused = make_batch(db, [lane], 1, expires_at=9_000_000_000_000), make_batch(db, [lane], 1, paused=True)
    late, cancelled = make_batch(db, [lane], 1, expires_at=1), make_batch(db, [lane], 1, status="cancelling")
    sealed = make_batch(db, [lane], 1, sealed_at=1, expires_at=1, paused=True)
    with db.read() as conn:
        assert watch_batches(conn, {runs, paused, late, cancelled, sealed, 99}) == {
            runs: None, paused: "paused", late: "expired", cancelled: "cancelled", sealed: "sealed", 99: "sealed"
        }  # fmt: skip


def test_a_lanes_open_lines_are_counted_for_one_batch_and_for_all(db: Database) -> None:
    first, second = make_lane(db, "a"), make_lane(db, "b")
    batch, _other = make_batch(db, [first], 20), make_batch(db, [first], 30)
    [claim] = claim_slices(db, first, "w", want_lines=1)
    record_group(db, [result_of(claim, line, ok=False) for line in range(1, 8)], "w")
    with db.read() as conn:
        of_batch = [(lane.id, lane.ready_lines, lane.leased_lines) for lane in lane_work(conn, claim.batch_id)]
        of_all = [(lane.id, lane.ready_lines, lane.leased_lines) for lane in lane_work(conn)]
        failed = failures_of_batch(conn, claim.batch_id)
    assert of_batch == [(first, 10, 10)] and claim.batch_id == batch
    assert of_all == [(first, 40, 10), (second, 0, 0)]
    assert failed == [{"code": "boom", "count": 7, "lines": [1, 2, 3, 4, 5]}]


def test_a_pause_is_never_shortened(db: Database) -> None:
    lane = make_lane(db)
    with db.write() as conn:
        assert pause_lane(conn, [lane], 600, "quota", "spent") == 1
        assert pause_lane(conn, [lane], 60, "bad_key", "401") == 0
        [for_a_while] = watch_pauses(conn, [lane])
        assert pause_lane(conn, [lane], None, "person", "mine") == 1
        [for_ever] = watch_pauses(conn, [lane])
    assert for_a_while.code == "quota" and 500 < for_a_while.left_s <= 600
    assert for_ever.code == "person" and for_ever.left_s > 1e9
