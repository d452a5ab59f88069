"""How lines become slices, and how long a batch takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batch.domain.limits import Limits
from batch.operations.slicing import RouteLines, cut_slices, lines_per_slice
from batch.operations.warn_window import LaneLoad, forecast, window_warning


def group(lines: list[int], tokens: int = 100) -> RouteLines:
    made = RouteLines()
    for line in lines:
        made.add(line, tokens)
    return made


@given(st.lists(st.integers(0, 3), max_size=300), st.floats(0.1, 100))
def test_every_line_stands_in_one_slice_of_its_route(routes: list[int], rate: float) -> None:
    """Law: nothing lost, nothing doubled, nothing in another lane."""
    groups: dict[int, RouteLines] = {}
    for line, route in enumerate(routes, 1):
        groups.setdefault(route, RouteLines()).add(line, 10)
    lanes = [[10 + number, 99] for number in range(4)]
    cuts = cut_slices(groups, lanes, {10: Limits(requests_per_second=rate)})
    placed = {line: cut.route[0] - 10 for cut in cuts for line in cut.lines}
    assert placed == dict(enumerate(routes, 1))
    assert sum(len(cut.lines) for cut in cuts) == len(routes)
    assert [cut.lines[0] for cut in cuts] == sorted(cut.lines[0] for cut in cuts)
    assert sum(cut.est_tokens for cut in cuts) == 10 * len(routes)


def test_a_slice_is_at_most_twenty_seconds_of_the_tightest_known_rate() -> None:
    """And 500 lines, and never none."""
    lines = group([1, 2, 3], tokens=1000)
    assert lines_per_slice(lines, Limits()) == 500
    assert lines_per_slice(lines, Limits(requests_per_minute=60)) == 20
    assert lines_per_slice(lines, Limits(requests_per_minute=60, tokens_per_minute=30_000)) == 10
    assert lines_per_slice(lines, Limits(tokens_per_minute=1)) == 1
    assert lines_per_slice(lines, Limits(requests_per_hour=1)) == 1


def test_the_slowest_lane_and_its_tightest_limit_decide() -> None:
    """A burst may use one whole window at once."""
    limits = Limits(requests_per_minute=100, tokens_per_minute=10_000)
    found = forecast([LaneLoad("a", "m", Limits(), 10**6, 0, 0), LaneLoad("b", "m", limits, 1000, 90_000, 20_000)])
    assert found is not None
    assert (found.provider, found.limit, found.seconds) == ("b", "tokens_per_minute", 600.0)
    assert forecast([LaneLoad("a", "m", Limits(), 10, 0, 0)]) is None


def test_a_warning_is_made_only_when_the_time_is_too_short() -> None:
    """With the limit, the need and what is left."""
    found = forecast([LaneLoad("mx4", "core", Limits(requests_per_minute=1), 121, 0, 0)])
    assert window_warning(found, None) is None
    assert window_warning(found, 7200) is None
    text = window_warning(found, 600)
    assert text is not None
    assert "1 requests/minute, mx4 / core needs about 2 h, and 10 min are left" in text
