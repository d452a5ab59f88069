"""The adaptive window, against simulated providers on simulated time."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.concurrency import Window


class Upstream:
    """A provider with a token bucket of requests (`rate` a second, one second deep) or slots, and a latency."""

    def __init__(self, *, rate=None, depth_s=1.0, slots=None, latency_s=0.5, seed=3):
        self.rate, self.depth_s, self.slots, self.latency_s = rate, depth_s, slots, latency_s
        self.level, self.at, self.running = (rate or 0) * depth_s, 0.0, 0
        self.rng = random.Random(seed)

    def admit(self, now):
        if self.rate is not None:
            self.level = min(self.rate * self.depth_s, self.level + (now - self.at) * self.rate)
            self.at = now
            if self.level < 1:
                return False
            self.level -= 1
        if self.slots is not None and self.running >= self.slots:
            return False
        self.running += 1
        return True


def drive(window, upstream, seconds, *, start=0.0, retry_after_s=1.0):
    """Keep the window full for `seconds`; (answered, refused) by minute, and when the run ended."""
    now, calls, order = start, [], 0
    held_until, minutes = start, {}
    while now < start + seconds:
        while window.room and now >= held_until:
            passed = upstream.admit(now)
            took = upstream.latency_s * upstream.rng.uniform(0.8, 1.2) if passed else 0.05
            order += 1
            heapq.heappush(calls, (now + took, order, passed, window.on_start(now), took))
        if not calls:
            now = held_until
            continue
        now, _, passed, stamp, took = heapq.heappop(calls)
        row = minutes.setdefault(int((now - start) // 60), [0, 0])
        if passed:
            upstream.running -= 1
            window.on_success(now, stamp, took, 50)
            row[0] += 1
        else:
            window.on_drop(now, stamp)
            held_until = max(held_until, now + retry_after_s)
            row[1] += 1
    for _, _, passed, stamp, _took in calls:
        upstream.running -= passed
        window.on_end(now, stamp)
    return minutes, now


def test_it_reaches_its_maximum_fast_where_nothing_limits():
    window = Window(start=8, maximum=2_000)
    drive(window, Upstream(latency_s=0.2), 4)
    assert window.size == 2_000


@pytest.mark.parametrize("slots", [4, 20, 100])
def test_an_unknown_concurrency_limit_is_found_with_few_refusals(slots):
    """At least 90 % of the limit from minute 3 on, at most 2 % refused over ten minutes."""
    window = Window(start=8)
    minutes, _ = drive(window, Upstream(slots=slots), 600)
    answered = sum(row[0] for row in minutes.values())
    refused = sum(row[1] for row in minutes.values())
    steady = sum(minutes[m][0] for m in range(3, 10)) / (7 * 60)
    assert refused <= 0.02 * (answered + refused)
    assert steady >= 0.9 * slots / 0.5


@pytest.mark.parametrize("rate", [10, 50])
def test_an_unknown_request_rate_is_found_with_few_refusals(rate):
    window = Window(start=8)
    minutes, _ = drive(window, Upstream(rate=rate), 600)
    answered = sum(row[0] for row in minutes.values())
    refused = sum(row[1] for row in minutes.values())
    steady = sum(minutes[m][0] for m in range(3, 10)) / (7 * 60)
    assert refused <= 0.02 * (answered + refused)
    assert steady >= 0.9 * rate


def test_a_limit_that_doubles_and_halves_is_followed():
    window, upstream = Window(start=8), Upstream(slots=20)
    _, now = drive(window, upstream, 180)
    upstream.slots = 40
    minutes, now = drive(window, upstream, 180, start=now)
    assert minutes[2][0] >= 0.9 * 60 * 40 / 0.5
    upstream.slots = 20
    minutes, now = drive(window, upstream, 180, start=now)
    assert minutes[1][0] >= 0.9 * 60 * 20 / 0.5
    assert minutes[1][1] <= 0.02 * minutes[1][0]


def test_one_incident_is_cut_once():
    """Fifty calls in flight meet the same refusal: the window shrinks by a tenth, not to nothing."""
    window = Window(start=50)
    stamps = [window.on_start(0.0) for _ in range(50)]
    for stamp in stamps[:46]:
        window.on_success(1.0, stamp, 1.0, 10)
    before = window.size
    for stamp in stamps[46:]:
        window.on_drop(1.1, stamp)
    assert window.size == pytest.approx(before * 0.9, abs=1)


def test_a_round_that_was_mostly_refused_is_cut_to_what_passed():
    window = Window(start=50)
    stamps = [window.on_start(0.0) for _ in range(50)]
    for stamp in stamps[:40]:
        window.on_drop(1.0, stamp)
    for stamp in stamps[40:]:
        window.on_success(1.0, stamp, 1.0, 10)
    assert 8 <= window.size <= 12


def test_it_grows_only_while_it_is_used():
    window = Window(start=20)
    for step in range(500):
        stamp = window.on_start(float(step))
        window.on_success(step + 0.5, stamp, 0.5, 10)
    assert window.size == 20


def test_long_answers_are_no_queue():
    """Ten times the tokens in ten times the time: the latency per token did not change."""
    window = Window(start=8, maximum=100)
    rng = random.Random(1)
    for step in range(2_000):
        stamps = [window.on_start(float(step)) for _ in range(window.room)]
        tokens = 50 if step < 20 else 500
        for stamp in stamps:
            window.on_success(step + 0.9, stamp, (tokens + 20) * 0.01 * rng.uniform(0.9, 1.1), tokens)
    assert window.size == 100


def test_growing_latency_stops_growth():
    window = Window(start=8, maximum=10_000)
    for step in range(30):
        stamps = [window.on_start(float(step)) for _ in range(window.room)]
        for stamp in stamps:
            window.on_success(step + 0.9, stamp, 0.5 if step < 4 else 5.0, 50)
    assert 20 <= window.size <= 200


def test_an_engines_gauge_keeps_a_little_queue():
    window = Window(start=8)
    for now in range(60):  # an engine that runs 64 at once
        stamps = [window.on_start(float(now)) for _ in range(window.room)]
        window.on_gauge(now, running=min(64, window.in_flight), waiting=max(0, window.in_flight - 64))
        for stamp in stamps:
            window.on_success(now + 0.5, stamp, 0.5, 10)
    assert 64 <= window.size <= 90


@given(st.lists(st.tuples(st.sampled_from(["start", "ok", "drop", "end"]), st.floats(0, 5)), max_size=200))
def test_it_never_falls_below_one_nor_loses_count(events):
    window, now, stamps = Window(start=3, maximum=50), 0.0, []
    for event, wait in events:
        now += wait
        if event == "start":
            stamps.append(window.on_start(now))
        elif stamps:
            stamp = stamps.pop(0)
            if event == "ok":
                window.on_success(now, stamp, now - stamp + 0.01, 10)
            elif event == "drop":
                window.on_drop(now, stamp)
            else:
                window.on_end(now, stamp)
        assert 1 <= window.size <= 50
        assert window.in_flight == len(stamps)
