"""The lease protocol on both databases: claim, renew, close, split, give back, and who is turned away."""

from __future__ import annotations

import threading

import sqlalchemy as sa

from batch.providers.prices import Price
from batch.storage.claims import claim_slices, load_open_lines
from batch.storage.engine import Database, db_now
from batch.storage.leases import Release, give_back_if_held, renew_if_held
from batch.storage.packing import unpack_lines
from batch.storage.rescues import wake_slices
from batch.storage.results import record_group
from batch.storage.tables import batch_lanes, batches, line_progress, slices, webhook_deliveries
from tests.harness.rows import A_DOLLAR_A_LINE, batch_row, lapse_leases, make_batch, make_lane, result_of


def states(db: Database, batch_id: int) -> dict[str, list[int]]:
    """Line numbers by slice state."""
    found: dict[str, list[int]] = {}
    with db.read() as conn:
        query = sa.select(slices.c.state, slices.c.lines).where(slices.c.batch_id == batch_id)
        for state, lines in conn.execute(query):
            found.setdefault(state, []).extend(unpack_lines(lines))
    return {state: sorted(lines) for state, lines in found.items()}


def counters(db: Database, lane_id: int, batch_id: int) -> tuple[int, int]:
    with db.read() as conn:
        return tuple(conn.execute(
            sa.select(batch_lanes.c.ready_lines, batch_lanes.c.leased_lines)
            .where(batch_lanes.c.lane_id == lane_id, batch_lanes.c.batch_id == batch_id)
        ).one())  # fmt: skip


def test_a_claim_takes_slices_in_order_until_it_has_enough_lines(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 50)
    claims = claim_slices(db, lane, "w1", want_lines=25)
    assert [c.lines for c in claims] == [list(range(1, 11)), list(range(11, 21)), list(range(21, 31))]
    assert counters(db, lane, batch) == (20, 30)
    assert {c.epoch for c in claims} == {1}


def test_open_lines_come_with_their_bodies_in_the_slices_order(db: Database) -> None:
    lane = make_lane(db)
    make_batch(db, [lane], 10)
    [claim] = claim_slices(db, lane, "w1", want_lines=10)
    record_group(db, [result_of(claim, 3)], "w1")
    with db.read() as conn:
        lines = load_open_lines(conn, claim)
    assert [item.line for item in lines] == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert lines[0].body is not None and "é".encode() in lines[0].body


def test_classes_share_eight_to_four_to_one(db: Database) -> None:
    lane = make_lane(db)
    batch = {make_batch(db, [lane], 400, priority=p): p for p in (0, 1, 2)}
    claims = claim_slices(db, lane, "w1", want_lines=390, max_slices=100)
    taken = [sum(len(c.lines) for c in claims if batch[c.batch_id] == p) for p in (0, 1, 2)]
    assert taken == [240, 120, 30]


def test_a_late_project_gets_half_of_what_is_claimed_next(db: Database) -> None:
    lane = make_lane(db)
    make_batch(db, [lane], 200, project_id=1)
    claim_slices(db, lane, "w1", want_lines=60)
    late = make_batch(db, [lane], 200, project_id=2)
    claims = claim_slices(db, lane, "w1", want_lines=60)
    assert {c.batch_id for c in claims} == {late}


def test_a_pump_with_enough_lines_may_still_take_one_slice_of_a_batch_it_does_not_hold(db: Database) -> None:
    lane = make_lane(db)
    first, second = make_batch(db, [lane], 100), make_batch(db, [lane], 100)
    claims = claim_slices(db, lane, "w1", want_lines=0, held_batches={first})
    assert [c.batch_id for c in claims] == [second] and len(claims[0].lines) == 10
    assert claim_slices(db, lane, "w1", want_lines=0, held_batches={first, second}) == []


def test_paused_sealed_and_waiting_work_is_not_claimed(db: Database) -> None:
    lane = make_lane(db)
    make_batch(db, [lane], 10, paused=True)
    make_batch(db, [lane], 10, status="cancelling")
    waiting = make_batch(db, [lane], 10)
    with db.write() as conn:
        conn.execute(sa.update(slices).where(slices.c.batch_id == waiting).values(not_before=db_now() + 60_000))
    assert claim_slices(db, lane, "w1", want_lines=10) == []
    with db.write() as conn:
        conn.execute(sa.update(slices).where(slices.c.batch_id == waiting).values(not_before=db_now() - 1))
    assert wake_slices(db) == 1
    assert [c.batch_id for c in claim_slices(db, lane, "w1", want_lines=10)] == [waiting]


def test_many_claimers_never_hold_the_same_line(db: Database) -> None:
    lane = make_lane(db)
    make_batch(db, [lane], 600, per_slice=5)
    taken: list[int] = []

    def work(name: str) -> None:
        while claims := claim_slices(db, lane, name, want_lines=20):
            taken.extend(line for claim in claims for line in claim.lines)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(taken) == list(range(1, 601))


def test_only_the_holder_renews(db: Database) -> None:
    lane = make_lane(db)
    make_batch(db, [lane], 20)
    first, second = claim_slices(db, lane, "w1", want_lines=20)
    held = {first.slice_id: first.epoch, second.slice_id: second.epoch}
    assert renew_if_held(db, "w1", held) == set(held)
    assert renew_if_held(db, "w2", held) == set()
    assert renew_if_held(db, "w1", {first.slice_id: first.epoch + 1}) == set()


def test_a_slice_closes_with_the_group_that_finishes_it(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 20)
    [claim, _other] = claim_slices(db, lane, "w1", want_lines=20)
    record_group(db, [result_of(claim, line) for line in range(1, 10)], "w1", [claim])
    assert "done" not in states(db, batch)
    record_group(db, [result_of(claim, 10)], "w1", [claim])
    assert states(db, batch)["done"] == list(range(1, 11))
    assert counters(db, lane, batch) == (0, 10)


def test_a_split_tail_goes_to_another_worker(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 10)
    [claim] = claim_slices(db, lane, "w1", want_lines=10)
    tail = [Release(line) for line in (6, 7, 8, 9, 10)]
    assert give_back_if_held(db, "w1", claim, tail, keep=[1, 2, 3, 4, 5])
    [taken] = claim_slices(db, lane, "w2", want_lines=10)
    assert taken.lines == [6, 7, 8, 9, 10]
    assert states(db, batch) == {"leased": list(range(1, 11))}
    assert not give_back_if_held(db, "w2", claim, [Release(1)], keep=[2, 3, 4, 5])


def test_giving_back_keeps_what_was_spent_and_separates_the_waiting(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 10)
    [claim] = claim_slices(db, lane, "w1", want_lines=10)
    record_group(db, [result_of(claim, 1), result_of(claim, 2)], "w1")
    released = [Release(line) for line in range(1, 9)]
    released += [Release(9, {"attempts": 2}, wait_s=90), Release(10, {"attempts": 1}, wait_s=95)]
    assert give_back_if_held(db, "w1", claim, released)
    assert not give_back_if_held(db, "w1", claim, released)
    assert counters(db, lane, batch) == (6, 0)
    [again] = claim_slices(db, lane, "w2", want_lines=10)
    assert again.lines == [3, 4, 5, 6, 7, 8]
    with db.write() as conn:
        conn.execute(sa.update(slices).where(slices.c.state == "ready").values(not_before=db_now() - 1))
        conn.execute(sa.update(line_progress).values(not_before=db_now() - 1))
    wake_slices(db)
    [waited] = claim_slices(db, lane, "w2", want_lines=10)
    with db.read() as conn:
        lines = load_open_lines(conn, waited)
    assert [(item.line, item.progress, item.wait_s) for item in lines] == [
        (9, {"attempts": 2}, 0.0), (10, {"attempts": 1}, 0.0),
    ]  # fmt: skip


def test_a_line_that_wants_another_provider_moves_to_the_next_lane(db: Database) -> None:
    first, second = make_lane(db, "a"), make_lane(db, "b")
    make_batch(db, [first, second], 10)
    [claim] = claim_slices(db, first, "w1", want_lines=10)
    moving = [Release(4, {"attempts": 1}, to_next_lane=True)]
    assert give_back_if_held(db, "w1", claim, moving, keep=[1, 2, 3, 5, 6, 7, 8, 9, 10])
    [moved] = claim_slices(db, second, "w2", want_lines=10)
    assert (moved.lines, moved.lane_id, moved.hop) == ([4], second, 1)


def test_a_zombie_can_neither_close_nor_give_back_nor_record_a_failure(db: Database) -> None:
    from batch.storage.rescues import expire_leases

    lane = make_lane(db)
    batch = make_batch(db, [lane], 10)
    [old] = claim_slices(db, lane, "w1", want_lines=10)
    lapse_leases(db)
    assert expire_leases(db) == 1
    [new] = claim_slices(db, lane, "w2", want_lines=10)
    assert new.epoch == old.epoch + 1
    report = record_group(db, [result_of(old, 1, ok=False), result_of(old, 2)], "w1", [old])
    assert (report.recorded, report.dropped["unheld"]) == (1, 1)
    assert "done" not in states(db, batch)
    assert not give_back_if_held(db, "w1", old, [Release(5)])
    report = record_group(db, [result_of(new, line) for line in range(1, 11)], "w2", [new])
    assert (report.recorded, report.dropped["duplicate"]) == (9, 1)
    assert batch_row(db, batch).completed == 10


def test_slices_that_share_a_position_are_claimed_in_the_order_they_were_cut(db: Database) -> None:
    """Pieces of one slice: whichever way the rows lie in their table."""
    lane = make_lane(db)
    make_batch(db, [lane], 9, per_slice=9)
    [whole] = claim_slices(db, lane, "w1", want_lines=9)
    for piece, keep in (([7, 8, 9], [1, 2, 3, 4, 5, 6]), ([4, 5, 6], [1, 2, 3]), ([1, 2, 3], [])):
        assert give_back_if_held(db, "w1", whole, [Release(line) for line in piece], keep=keep)
    with db.write() as conn:  # an update writes a row anew, behind the others
        conn.execute(sa.update(slices).where(slices.c.id == whole.slice_id + 1).values(est_tokens=1))
    claimed = [claim_slices(db, lane, "w2", want_lines=1)[0].lines for _ in range(3)]
    assert claimed == [[7, 8, 9], [4, 5, 6], [1, 2, 3]]


def test_a_budget_is_reserved_at_the_claim_and_never_exceeded(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 30, budget_usd=12.5)
    [first] = claim_slices(db, lane, "w1", want_lines=100, cost_of=A_DOLLAR_A_LINE)
    [second] = claim_slices(db, lane, "w1", want_lines=100, cost_of=A_DOLLAR_A_LINE)
    assert (len(first.lines), second.lines) == (10, [11, 12])
    assert claim_slices(db, lane, "w1", want_lines=100, cost_of=A_DOLLAR_A_LINE) == []
    assert batch_row(db, batch).reserved_usd == 12
    rows = [result_of(first, line, cost_usd=0.5, reserved_usd=1.0) for line in first.lines]
    record_group(db, rows, "w1", [first])
    row = batch_row(db, batch)
    assert (row.reserved_usd, row.cost_usd, row.paused) == (2, 5, False)
    assert give_back_if_held(db, "w1", second, [Release(11), Release(12)])
    assert batch_row(db, batch).reserved_usd == 0


def test_a_long_prompt_is_reserved_at_the_price_of_its_tier(db: Database) -> None:
    lane = make_lane(db)
    make_batch(db, [lane], 4, budget_usd=100)
    price = Price(0, 50_000, tiers=((9, Price(0, 100_000)),))  # each line's input is estimated at 10 tokens
    [claim] = claim_slices(db, lane, "w", want_lines=4, cost_of=price.of)
    assert claim.reserved_usd == 8


def test_a_batch_whose_next_line_does_not_fit_its_budget_is_paused(db: Database) -> None:
    lane = make_lane(db)
    batch = make_batch(db, [lane], 10, budget_usd=0.5)
    assert claim_slices(db, lane, "w1", want_lines=10, cost_of=A_DOLLAR_A_LINE) == []
    assert claim_slices(db, lane, "w2", want_lines=10, cost_of=A_DOLLAR_A_LINE) == []
    row = batch_row(db, batch)
    assert (row.paused, row.pause_reason) == (True, "budget")
    with db.write() as conn:
        events = conn.execute(sa.select(webhook_deliveries.c.event, webhook_deliveries.c.batch_id)).fetchall()
        assert events == [("batch.paused", batch)]  # once, in the claim's own transaction
        conn.execute(sa.update(batches).values(paused=False, pause_reason=None, budget_usd=100))
    assert claim_slices(db, lane, "w1", want_lines=10, cost_of=A_DOLLAR_A_LINE)
