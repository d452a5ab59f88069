"""Fair shares: classes 8 : 4 : 1, then projects, then batches; then the earlier deadline."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from batch.domain.shares import Contender, Shares


def contender(batch_id: int, project_id: int = 1, priority: int = 1, ready: int = 10_000, **kw: int) -> Contender:
    return Contender(batch_id, project_id, priority, kw.get("deadline"), ready, kw.get("leased", 0))


def take(shares: Shares, times: int, size: int = 10) -> Counter[int]:
    taken: Counter[int] = Counter()
    for _ in range(times):
        chosen = shares.pick()
        assert chosen is not None
        shares.take(chosen, size)
        taken[chosen.batch_id] += 1
    return taken


def test_classes_get_eight_four_and_one() -> None:
    assert take(Shares([contender(p, priority=p) for p in (0, 1, 2)]), 130) == {0: 80, 1: 40, 2: 10}


def test_two_projects_share_alike_however_many_batches_they_have() -> None:
    taken = take(Shares([contender(1, 1), *(contender(n, 2) for n in range(2, 11))]), 100)
    assert taken[1] == 50


def test_of_equals_the_earlier_deadline_goes_first() -> None:
    chosen = Shares([contender(1, deadline=900), contender(2, deadline=100), contender(3)]).pick()
    assert chosen is not None and chosen.batch_id == 2


def test_a_low_class_is_never_starved() -> None:
    assert take(Shares([contender(1, priority=0), contender(2, priority=2)]), 90)[2] == 10


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 50)), min_size=1, max_size=12))
def test_everything_that_is_ready_is_taken_in_the_end(rows: list[tuple[int, int, int]]) -> None:
    shares = Shares(
        [contender(n, project, priority, ready) for n, (priority, project, ready) in enumerate(rows)]
    )
    taken = 0
    while (chosen := shares.pick()) is not None:
        shares.take(chosen, 1)
        taken += 1
    assert taken == sum(ready for _, _, ready in rows)
