"""Cutting a batch's lines into slices: how many lines one holds, and in which order they are sent.

Owns: `order_lines`, the seam where the order is chosen, and the size of a slice (at most 500 lines and
20 s of its lane's known rate). Results are in input order whatever is chosen here.
May not touch: storage; storage.ingest writes what is cut here. Serves ingest.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from batch.domain.limits import Limits
from batch.settings import SLICE_MAX_LINES, SLICE_SECONDS
from batch.storage.ingest import Cut


@dataclass(slots=True)
class RouteLines:
    """The lines that share a route, in input order: numbers and estimated tokens side by side."""

    lines: array[int] = field(default_factory=lambda: array("I"))
    tokens: array[int] = field(default_factory=lambda: array("I"))

    def add(self, line: int, tokens: int) -> None:
        self.lines.append(line)
        self.tokens.append(tokens)

    @property
    def total_tokens(self) -> int:
        return sum(self.tokens)


def cut_slices(
    groups: Mapping[int, RouteLines], routes: Sequence[Sequence[int]], limits: Mapping[int, Limits]
) -> list[Cut]:
    """Slices of all routes, ordered by their first line; `limits` are by lane id."""
    cuts = []
    for number, group in groups.items():
        route = list(routes[number])
        size = lines_per_slice(group, limits.get(route[0], Limits()))
        for ordered in order_lines(group):
            for start in range(0, len(ordered.lines), size):
                lines = ordered.lines[start : start + size]
                cuts.append(Cut(lines, route, sum(ordered.tokens[start : start + size]), None))
    cuts.sort(key=lambda cut: cut.lines[0])
    return cuts


def order_lines(group: RouteLines) -> Iterator[RouteLines]:
    """Runs of lines that should follow each other within slices. Input order: one run.

    An order by common prompt prefix yields one run per prefix, so that no slice mixes two.
    """
    yield group


def lines_per_slice(group: RouteLines, limits: Limits) -> int:
    """At most 20 s of the lane's known rate, 1 to 500 lines."""
    size = float(SLICE_MAX_LINES)
    rate = limits.requests_per_second_bound
    if rate is not None:
        size = min(size, rate * SLICE_SECONDS)
    if limits.tokens_per_minute is not None and group.lines:
        mean_tokens = max(1.0, group.total_tokens / len(group.lines))
        size = min(size, limits.tokens_per_minute / 60 * SLICE_SECONDS / mean_tokens)
    return max(1, int(size))
