"""Held lines: whose turn it is, and taking lines out again."""

from __future__ import annotations

from batch.storage.claims import OpenLine, SliceClaim
from workers.leases import HeldSlice
from workers.line_queue import LineQueue


def held(slice_id: int, batch_id: int, lines: list[int], priority: int = 1) -> tuple[HeldSlice, list[OpenLine]]:
    claim = SliceClaim(
        slice_id, 1, 1, [1], 0, lines, priority, False, None, 0.0, 0,
        batch_id, f"batch_{batch_id}", 1, "/v1/chat/completions", {}, "", None, None,
    )  # fmt: skip
    items = [OpenLine(n, f"c{n}", b"{}", None, None, 1, 1, None) for n in lines]
    return HeldSlice(claim, 0.0, set(lines)), items


def test_lines_of_one_batch_come_in_sending_order_across_slices() -> None:
    queue = LineQueue()
    queue.add(*held(1, 1, [1, 2]))
    queue.add(*held(2, 1, [3, 4]))
    assert [queue.next()[1].line for _ in range(4)] == [1, 2, 3, 4]  # type: ignore[index]
    assert queue.next() is None and queue.unsent == 0


def test_a_high_batch_gets_twice_the_turns_of_a_normal_one() -> None:
    queue = LineQueue()
    queue.add(*held(1, 1, list(range(1000)), priority=0))
    queue.add(*held(2, 2, list(range(1000)), priority=1))
    taken = [queue.next()[0].claim.batch_id for _ in range(720)]  # type: ignore[index]
    assert taken.count(1) == 480


def test_a_slices_unsent_lines_can_be_taken_out() -> None:
    queue = LineQueue()
    first, second = held(1, 1, [1, 2, 3]), held(2, 1, [4, 5])
    queue.add(*first)
    queue.add(*second)
    queue.next()
    assert [item.line for item in queue.take_tail(first[0], 1)] == [3]
    assert queue.take_tail(first[0], 0) == []
    assert [item.line for item in queue.take_tail(second[0], 2)] == [4, 5]
    assert queue.unsent == 1 and queue.next()[1].line == 2  # type: ignore[index]
