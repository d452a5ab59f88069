"""Rates and ETAs: right within a seventh once a twentieth is done, silent while nobody can know."""

from __future__ import annotations

import pytest

from batch.operations.eta import RateBook, measure_pace
from tests.harness.clock import FakeClock


def watch(total: int, per_s: float, look_every_s: float, first_s: float):
    """(share done, seconds really left, ETA) at each look at a batch whose lines end at a steady rate."""
    clock, book, seen = FakeClock(), RateBook(), []
    started = clock.now()
    while True:
        clock.advance(look_every_s)
        now = clock.now()
        done = min(total, int(max(0.0, now - started - first_s) * per_s))
        recent = book.note(1, now, done)
        pace = measure_pace(
            now=now, started_at=started, done=done, total=total, recent=recent, stands_still=False
        )
        if done >= total:
            return seen
        seen.append((done / total, started + first_s + total / per_s - now, pace.eta_s))


@pytest.mark.parametrize(
    ("total", "per_s", "look_every_s", "first_s"),
    [(12_480, 0.26, 0.5, 3), (12_480, 0.26, 5, 3), (10_000, 30, 0.5, 1), (1_000_000, 900, 1, 2), (600, 1.6, 1, 5)],
)
def test_the_eta_is_within_fifteen_percent_once_a_twentieth_is_done(total, per_s, look_every_s, first_s):
    """At a steady limit, however often somebody looks."""
    looks = watch(total, per_s, look_every_s, first_s)
    told = [(left, eta) for share, left, eta in looks if share >= 0.05 and left > 2]
    assert len(told) > 5
    for left, eta in told:
        assert eta is not None and abs(eta - left) <= 0.15 * left + 1 / per_s


def test_after_a_standstill_the_rate_is_the_new_one_within_two_minutes():
    clock, book, done = FakeClock(), RateBook(), 0
    for second in range(1_000):
        clock.advance(1.0)
        done += 10 if second < 300 or second >= 800 else 0
        rate = book.note(1, clock.now(), done)
    assert rate == pytest.approx(10, rel=0.05)


def test_nothing_is_promised_while_it_stands_still_or_before_anything_is_known():
    still = measure_pace(now=500, started_at=100, done=50, total=100, recent=None, stands_still=True)
    assert (still.rate_per_s, still.eta_s) == (0.0, None)
    fresh = measure_pace(now=100.5, started_at=100, done=0, total=100, recent=None, stands_still=False)
    assert (fresh.rate_per_s, fresh.eta_s) == (None, None)


def test_a_one_time_look_takes_the_mean_since_the_start():
    pace = measure_pace(now=700, started_at=100, done=60, total=120, recent=None, stands_still=False)
    assert pace.eta_s == pytest.approx(600)
