"""Cutting a batch's lines into slices: how many lines one holds, and in which order they are sent.

Owns: the two orders (as the input stands, or by common prefix) and the size of a slice (at most 500 lines
and 20 s of its lane's known rate). Results are in input order whatever is chosen here.
May not touch: storage; storage.ingest writes what is cut here. Serves ingest.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from batch.domain.limits import Limits
from batch.settings import SLICE_MAX_LINES, SLICE_SECONDS
from batch.storage.ingest import Cut

TAIL_SLICES = 16  # no slice holds more than this part of what is left, …
TAIL_LINES = 8    # … down to so many lines

PrefixedLine = tuple[int, int, int, int]  # line, prefix (0: none), estimated tokens in, out


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
    """Slices in input order, of all routes, ordered by their first line; `limits` are by lane id."""
    cuts = []
    for number, group in groups.items():
        route = list(routes[number])
        size = lines_per_slice(group, limits.get(route[0], Limits()))
        for start in range(0, len(group.lines), size):
            lines = group.lines[start : start + size]
            cuts.append(Cut(lines, route, sum(group.tokens[start : start + size]), None))
    cuts.sort(key=lambda cut: cut.lines[0])
    return cuts


def cut_by_prefix(rows: Iterable[PrefixedLine], total: int, route: Sequence[int], size: int) -> list[Cut]:
    """Slices of one route whose `rows` come by prefix, long answers first within it.

    Small groups share a slice, none is torn but by the size. A slice is labelled with its prefix when the
    group fits into one: larger ones are cached everywhere soon. Lines that share nothing come last, long
    answers first; and the slices shrink towards the end, so that it is spread.
    """
    cutter = _Cutter(total, list(route), size)
    singles: dict[int, RouteLines] = {}  # by the power of two of their answers' length: enough for the longest first
    for prefix, group in itertools.groupby(rows, key=itemgetter(1)):
        alike = iter(group)
        head = list(itertools.islice(alike, 2))
        if prefix and len(head) == 2:
            for index, row in enumerate(itertools.chain(head, alike)):
                cutter.add(row, begins=index == 0)
        else:
            for line, _, tokens_in, tokens_out in itertools.chain(head, alike):
                singles.setdefault(tokens_out.bit_length(), RouteLines()).add(line, tokens_in + tokens_out)
    cutter.flush()
    for _, bucket in sorted(singles.items(), reverse=True):
        for line, tokens in zip(bucket.lines, bucket.tokens, strict=True):
            cutter.add((line, 0, tokens, 0), begins=False)
    cutter.flush()
    return cutter.cuts


class _Cutter:
    """Gathers lines into cuts; `total` lines are expected."""

    def __init__(self, total: int, route: list[int], size: int) -> None:
        self.cuts: list[Cut] = []
        self._left = total
        self._route = route
        self._size = size
        self._lines = array("I")
        self._tokens = 0
        self._label: str | None = None
        self._is_torn = False  # the group under way began in an earlier slice

    def add(self, row: PrefixedLine, *, begins: bool) -> None:
        room = max(min(TAIL_LINES, self._size), min(self._size, self._left // TAIL_SLICES))
        if len(self._lines) >= (room // 2 if begins else room):
            self._is_torn = not begins
            self.flush()
        elif begins:
            self._is_torn = False
        if not self._lines:
            self._label = f"{row[1]:x}" if row[1] else None
        self._lines.append(row[0])
        self._tokens += row[2] + row[3]

    def flush(self) -> None:
        if self._lines:
            label = None if self._is_torn else self._label
            self.cuts.append(Cut(self._lines, self._route, self._tokens, label))
            self._left -= len(self._lines)
        self._lines, self._tokens = array("I"), 0


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
