"""A limit that nobody stated, found from what is refused: calls a second, or calls at once.

Owns: Found (the state that all workers of a lane share) and step(): what the calls of the last second
teach. A cut goes to what was admitted, not by a fixed part, so that sparse random failures cannot add up
to a collapse; it needs more refusals than such failures explain. Growth is slow below the last ceiling
and speeds up beyond it, only while the limit is used. Pure: times are given, in seconds of any one clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["", "rate", "slots"]

MEMORY_S, MEMORY_CALLS = 2.0, 60.0     # what is remembered of earlier seconds, whichever is longer
LEAST, SHARE = 3.0, 0.03               # refusals that make an incident: so many, and this share of calls beyond
PASSING = 0.2                          # less than this admitted is an outage, not a limit
BELOW = 0.97                           # of what was admitted: the ceiling of a rate
BACK = 0.9                             # of what was admitted, after a cut
DEEPEST = 0.3                          # of the limit so far, by one cut
LOOK_S = 1.0                           # no measure is made of less
HEARD_S = 0.3                          # from the first refusal: the other workers tell theirs
GRACE_S = 0.5                          # after a cut, refusals of calls that were on their way
EARLY, AGAIN = 0.3, 3                  # so many more cuts, each so soon after the last: it is a limit of the other kind
NOISY_LEAST, NOISY = 6.0, 0.018        # or this share of all calls refused from cut to cut
FIRST_S = 3.0                          # a bucket that was full gave this much in advance, before the first cut
SETTLE_CALLS, SETTLE_S = 800.0, (30.0, 90.0)  # from a cut back to the ceiling
FIRST_SETTLE_S = 10.0                  # the first measure is a rough one
SPEED, SPEED_S = 0.04, 25.0            # beyond it: ceiling × (1 + SPEED · (t / SPEED_S)³)
USED = 0.75                            # of the limit: less is no reason to grow
LONG_WAIT_S = 5.0                      # a Retry-After that tells of a longer period than was looked at


@dataclass(frozen=True, slots=True)
class Seen:
    """What all workers saw since the last step. `busy_s`: the time in flight of calls that were not refused."""

    started: float = 0.0
    refused: float = 0.0
    crowded: float = 0.0    # of them, those that speak of calls at once or of overload
    busy_s: float = 0.0
    pressing: float = 0.0   # workers that had more to send
    asked_s: float = 0.0    # the longest Retry-After


@dataclass(frozen=True, slots=True)
class Found:
    """`kind` "": nothing is found yet. The sums are of about MEMORY_S."""

    kind: Kind = ""
    floor: float = 0.0      # the limit just after the last cut
    ceiling: float = 0.0
    settle_s: float = 0.0
    grown_s: float = 0.0    # time since the cut in which the limit was used
    cut_at: float = 0.0
    again: int = 0
    at: float = 0.0         # of the last step
    first_refused_at: float = 0.0
    asked_s: float = 0.0    # the longest Retry-After since the cut
    since: float = 0.0      # of the two sums below, which forget nothing until the next cut
    all_started: float = 0.0
    all_refused: float = 0.0
    seconds: float = 0.0
    started: float = 0.0
    refused: float = 0.0
    crowded: float = 0.0
    busy_s: float = 0.0

    @classmethod
    def kept(cls, kept: Mapping[str, Any] | None) -> Found:
        """What keep() wrote before a restart: a limit to begin with, that the first calls confirm or correct."""
        if not kept:
            return cls()
        return cls(kept["kind"], kept["floor"], kept["ceiling"], SETTLE_S[0])

    def keep(self) -> dict[str, Any] | None:
        """For `lanes.learned["found"]`; None while nothing is found."""
        if not self.kind:
            return None
        floor = round(self.value, 4)
        return {"kind": self.kind, "floor": floor, "ceiling": max(floor, round(self.ceiling, 4))}

    @property
    def value(self) -> float:
        """The limit now: back to the ceiling along a cubic, then away from it along another."""
        if not self.kind:
            return math.inf
        left = 1.0 - self.grown_s / self.settle_s
        if left > 0:
            return self.ceiling - (self.ceiling - self.floor) * left**3
        return self.ceiling * (1.0 + SPEED * ((self.grown_s - self.settle_s) / SPEED_S) ** 3)

    @property
    def slots(self) -> int:
        """Calls at once, where that is what was found."""
        return max(1, int(self.value + 1e-9))

    @property
    def guess(self) -> Kind:
        return "rate" if self.crowded * 2 < self.refused else "slots"

    @property
    def admitted(self) -> float:
        return self.started - self.refused


def step(found: Found, seen: Seen, now: float, *, may_be_rate: bool, share: float = 1.0) -> Found:
    """The state after `seen`. `may_be_rate` False: a rate is known already, only calls at once are looked for.
    `share`: the part of the limit that those who saw it use, where each works by itself; so used, it does not grow."""
    passed = max(0.0, now - found.at) if found.at else 1.0
    found = replace(found, at=now, since=found.since or now - passed)
    if now - found.cut_at < grace_s(found):
        return replace(found, since=now)
    if seen.pressing or seen.refused:
        found = _remember(found, seen, passed)
        if _is_used(found):
            found = replace(found, grown_s=found.grown_s + passed)
    else:
        found = replace(found, since=found.since + passed)
    if found.refused < 1.0:
        found = replace(found, first_refused_at=0.0)
    elif not found.first_refused_at:
        found = replace(found, first_refused_at=now)
    return _cut(found, now, may_be_rate, share) if _is_incident(found, now) else found


def _remember(found: Found, seen: Seen, passed: float) -> Found:
    keep = math.exp(-min(passed / MEMORY_S, (seen.started + 1e-9) / MEMORY_CALLS))
    return replace(
        found,
        seconds=found.seconds * keep + passed,
        started=found.started * keep + seen.started,
        refused=found.refused * keep + seen.refused,
        crowded=found.crowded * keep + seen.crowded,
        busy_s=found.busy_s * keep + seen.busy_s,
        asked_s=max(found.asked_s, seen.asked_s),
        all_started=found.all_started + seen.started,
        all_refused=found.all_refused + seen.refused,
    )


def _is_used(found: Found) -> bool:
    if not found.kind or not found.seconds:
        return False
    use = found.started if found.kind == "rate" else found.busy_s
    return use / found.seconds >= USED * (found.value if found.kind == "rate" else found.slots)


def _is_incident(found: Found, now: float) -> bool:
    """Refused more than chance explains, and not all: where nothing passes there is nothing to measure."""
    passing = PASSING * found.started if found.guess == "slots" else 1.0
    return (
        found.refused >= LEAST + SHARE * found.started
        and (found.admitted >= passing or (found.asked_s > LONG_WAIT_S and found.guess == "rate"))
        and now - found.first_refused_at >= HEARD_S
        and found.seconds >= LOOK_S
    )


def _cut(found: Found, now: float, may_be_rate: bool, share: float) -> Found:
    kind, again = _kind(found, may_be_rate)
    seconds = found.seconds if found.kind else max(found.seconds, FIRST_S)
    passed = found.admitted / found.started
    rate = found.admitted / seconds / share
    if kind == "slots":
        admitted = found.busy_s / found.seconds / share
        ceiling = found.value if kind == found.kind else admitted * min(2.0, 1.0 / max(passed, 0.1))
        if kind == found.kind:  # few refusals: one call too many, not a third of them
            admitted = max(admitted, found.value * max(DEEPEST, 2.0 * passed - 1.0))
        admitted = max(1.0, admitted)
    else:
        if found.asked_s > LONG_WAIT_S:
            rate = (found.all_started - found.all_refused) / (now - found.since + found.asked_s) / share
        elif kind == found.kind:
            rate = found.value * max(passed, DEEPEST)
        admitted = ceiling = BELOW * rate
    floor = (BACK if kind == "rate" else BELOW) * admitted
    floor = min(floor, found.value) if kind == found.kind else floor
    settle_s = min(max(SETTLE_CALLS / max(rate, 0.01), SETTLE_S[0]), SETTLE_S[1])
    if not found.kind:
        settle_s = min(settle_s, FIRST_SETTLE_S)
    if kind == "slots":
        floor = max(1.0, floor)
    return Found(kind, floor, max(floor, ceiling), settle_s, cut_at=now, again=again, at=now, since=now)


def _kind(found: Found, may_be_rate: bool) -> tuple[Kind, int]:
    """What limits, and how many cuts in a row came soon. Words of overload are believed; others may mean either."""
    if not may_be_rate or found.guess == "slots":
        return "slots", 0
    if not found.kind:
        return "rate", 0
    again = 0
    if found.grown_s < EARLY * found.settle_s:
        again = found.again + 1
    elif found.settle_s >= SETTLE_S[0] and found.all_refused > max(NOISY_LEAST, NOISY * found.all_started):
        again = found.again + 2
    if again > AGAIN:
        return ("slots" if found.kind == "rate" else "rate"), 0
    return found.kind, again


def grace_s(found: Found) -> float:
    """How long after a cut calls tell of its incident: rare slots were leased up to four seconds ahead."""
    return GRACE_S + (min(4.0, max(0.5, 20.0 / found.value)) if found.kind == "rate" else 0.5)
