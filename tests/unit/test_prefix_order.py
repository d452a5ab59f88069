"""Which lines are sent together, and which first, where the order is by common beginnings."""

from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from batch.completions.prefix import prefix_key
from batch.operations.slicing import TAIL_LINES, cut_by_prefix


def asked(question: str, *, system: str = "", document: str = "") -> dict[str, object]:
    messages = [{"role": "system", "content": system}] if system else []
    return {"model": "m", "messages": [*messages, {"role": "user", "content": document + question}]}


def by_prefix(rows: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """As the database hands them over."""
    return sorted(rows, key=lambda row: (row[1], -row[3], row[0]))


def test_requests_over_one_document_share_a_key_wherever_it_stands() -> None:
    """In a system message, or at the beginning of the question's own message."""
    long, other = "word " * 300, "else " * 300
    assert prefix_key(asked("why?", system=long)) == prefix_key(asked("who?", system=long))
    assert prefix_key(asked("why?", system=long)) != prefix_key(asked("why?", system=other))
    assert prefix_key(asked("why?", document=long)) == prefix_key(asked("who?", document=long))
    assert prefix_key(asked("why?", document=long)) != prefix_key(asked("why?", document=other))


def test_short_questions_without_a_common_beginning_have_none() -> None:
    """So that the longest answers can go first among all of them."""
    assert prefix_key(asked("why?")) == prefix_key(asked("who?")) == 0
    assert prefix_key({"model": "m", "input": ["a", "b"]}) == 0
    assert 0 < prefix_key(asked("x", system="y")) < 2**63


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 900)), max_size=400), st.integers(1, 60))
def test_every_line_is_cut_once_and_no_group_is_torn_but_by_the_size(lines: list[tuple[int, int]], size: int) -> None:
    """Law: nothing lost, groups in one run, long answers first within a group."""
    rows = [(number, prefix, 10, out) for number, (prefix, out) in enumerate(lines, 1)]
    cuts = cut_by_prefix(by_prefix(rows), len(rows), [1, 2], size)
    sent = [line for cut in cuts for line in cut.lines]
    assert sorted(sent) == [row[0] for row in rows]
    assert sum(cut.est_tokens for cut in cuts) == sum(row[2] + row[3] for row in rows)
    assert all(len(cut.lines) <= max(size, min(TAIL_LINES, size)) for cut in cuts)
    known = {row[0]: row for row in rows}
    shared = [p for p in {row[1] for row in rows} if p and sum(row[1] == p for row in rows) > 1]
    runs = [prefix for prefix, _ in groupby(known[line][1] if known[line][1] in shared else 0 for line in sent)]
    assert len([run for run in runs if run]) == len(shared)
    for prefix in shared:
        outs = [known[line][3] for line in sent if known[line][1] == prefix]
        assert outs == sorted(outs, reverse=True)


def test_a_group_that_fits_a_slice_names_it_and_larger_ones_do_not() -> None:
    """Affinity is for what one replica can hold; what all will have cached soon goes anywhere."""
    rows = [(line, 7, 1, 1) for line in range(1, 401)] + [(line, 9, 1, 1) for line in range(401, 9001)]
    cuts = cut_by_prefix(by_prefix(rows), len(rows), [1], 500)
    assert [cut.prefix for cut in cuts] == ["7", *[None] * (len(cuts) - 1)]


def test_slices_shrink_towards_the_end() -> None:
    """So that the last ones spread over workers and replicas."""
    rows = [(line, 0, 1, 100) for line in range(1, 5001)]
    sizes = [len(cut.lines) for cut in cut_by_prefix(rows, len(rows), [1], 500)]
    assert sizes[0] == 5000 // 16
    assert sizes[-2] == TAIL_LINES
    assert sizes[:-1] == sorted(sizes[:-1], reverse=True)
