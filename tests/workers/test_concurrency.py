"""The window of one process: growth, latency, an engine's gauge. Limits are found in test_unknown_limits."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from batch.domain.limits import Limits
from workers.concurrency import Window, first_size


def answer(window, now, count, latency_s, tokens=50):
    """A round: the window is filled, `count` calls at most, and everything is answered."""
    calls = min(window.room, count)
    for _ in range(calls):
        window.on_start()
    for _ in range(calls):
        window.on_success(now, latency_s, tokens)
        window.on_start()
    for _ in range(calls):
        window.on_end()


def test_what_is_known_is_used_from_the_start():
    """A stated number of calls, or a rate with slow answers, is not crept up to; an unknown limit is."""
    assert first_size(Limits(concurrency=2_000), 1, is_engine=False) == 2_000
    assert first_size(Limits(requests_per_second=30), 2, is_engine=False) == 900
    assert first_size(Limits(tokens_per_minute=10_000), 2, is_engine=False) == 64
    assert first_size(Limits(), 2, is_engine=False) == 4
    assert first_size(Limits(concurrency=128, start_concurrency=32), 2, is_engine=True) == 16


def test_it_reaches_its_maximum_fast_where_nothing_limits():
    window = Window(start=8, maximum=2_000)
    for now in range(12):
        answer(window, now, 2_000, 0.2)
    assert window.size == 2_000


def test_a_refusal_stops_growth_for_a_moment_and_takes_nothing_away():
    window = Window(start=8)
    window.on_start()
    window.on_refusal(0.0)
    answer(window, 0.5, 8, 0.2)
    assert window.size == 8
    answer(window, 1.5, 8, 0.2)
    assert window.size > 8


def test_it_grows_only_while_it_is_used():
    window = Window(start=20)
    for step in range(500):
        answer(window, float(step), 1, 0.5)
    assert window.size == 20


def test_long_answers_are_no_queue():
    """Ten times the tokens in ten times the time: the latency per token did not change."""
    window = Window(start=8, maximum=100)
    rng = random.Random(1)
    for step in range(2_000):
        tokens = 50 if step < 20 else 500
        answer(window, float(step), 100, (tokens + 20) * 0.01 * rng.uniform(0.9, 1.1), tokens)
    assert window.size == 100


def test_growing_latency_stops_growth():
    window = Window(start=8, maximum=10_000)
    for step in range(30):
        answer(window, float(step), 10_000, 0.5 if step < 4 else 5.0)
    assert 20 <= window.size <= 200


def test_an_engines_gauge_keeps_a_little_queue():
    window = Window(start=8)
    for now in range(60):  # an engine that runs 64 at once
        calls = window.room
        for _ in range(calls):
            window.on_start()
        window.on_gauge(now, running=min(64, window.in_flight), waiting=max(0, window.in_flight - 64))
        for _ in range(calls):
            window.on_success(now + 0.5, 0.5, 10)
    assert 64 <= window.size <= 90


@given(st.lists(st.tuples(st.sampled_from(["start", "ok", "drop", "end"]), st.floats(0, 5)), max_size=200))
def test_it_never_falls_below_one_nor_loses_count(events):
    window, now, running = Window(start=3, maximum=50), 0.0, 0
    for event, wait in events:
        now += wait
        if event == "start":
            window.on_start()
            running += 1
        elif running:
            running -= 1
            if event == "ok":
                window.on_success(now, wait + 0.01, 10)
            elif event == "drop":
                window.on_refusal(now)
            else:
                window.on_end()
        assert 1 <= window.size <= 50
        assert window.in_flight == running
