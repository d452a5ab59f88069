"""Limits that nobody stated, found by 1, 4 and 8 workers together over simulated minutes of the real pacer."""

from __future__ import annotations

import contextlib

import pytest

from batch.domain.limits import Limits
from tests.harness.simulated_lanes import MEAN_LATENCY_S, Simulation


@contextlib.contextmanager
def simulated(workers, limits=None, **provider):
    simulation = Simulation(workers, limits, **provider)
    try:
        yield simulation
    finally:
        simulation.close()


@pytest.mark.parametrize("workers", [1, 4, 8])
def test_an_unknown_rate_is_found_and_followed_when_it_halves_and_doubles(workers):
    """At most 2 % refused in ten minutes, 90 % of the limit from minute 3, and again within 3 of each change."""
    with simulated(workers, rate=30) as world:
        world.run(600)
        assert world.share_refused() <= 0.02
        assert all(world.rate(minute, minute) >= 0.9 * 30 for minute in range(3, 10))
        world.provider.rate = 15
        world.run(300)
        assert world.rate(13, 14) >= 0.9 * 15
        world.provider.rate = 30
        world.run(300)
        assert world.rate(18, 19) >= 0.9 * 30
        assert world.share_refused() <= 0.03


@pytest.mark.parametrize("workers", [1, 4, 8])
def test_an_unknown_number_of_calls_at_once_is_found_and_followed(workers):
    limit = 24 / MEAN_LATENCY_S
    with simulated(workers, slots=24) as world:
        world.run(600)
        assert world.share_refused() <= 0.02
        assert world.rate(3, 9) >= 0.9 * limit
        world.provider.slots = 12
        world.run(300)
        assert world.rate(13, 14) >= 0.9 * limit / 2
        world.provider.slots = 24
        world.run(300)
        assert world.rate(18, 19) >= 0.9 * limit
        assert world.share_refused() <= 0.03


@pytest.mark.parametrize(("depth_s", "workers"), [(1.0, 4), (60.0, 1)])
def test_a_provider_that_counts_whole_seconds_or_minutes_is_met_at_its_mean(depth_s, workers):
    with simulated(workers, rate=20, is_hard=True, depth_s=depth_s, tells_wait=True) as world:
        world.run(600)
        assert world.share_refused() <= 0.02
        assert world.rate(3, 9) >= 0.9 * 20


def test_few_calls_at_once_are_shared_by_more_workers():
    """Four at once for eight workers: a place that one does not use is another's."""
    with simulated(8, slots=4) as world:
        world.run(600)
        assert world.share_refused() <= 0.03
        assert world.rate(3, 9) >= 0.9 * 4 / MEAN_LATENCY_S


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("failure", ["refused", "reset", "error"])
def test_sparse_random_failures_take_no_speed(failure, workers):
    """One call in a hundred fails whatever the load: once, 24 calls at once became one or two, for good."""
    with simulated(workers, Limits(concurrency=24), noise=failure) as world:
        world.run(180)
        assert world.rate(1, 2) >= 0.95 * 24 / MEAN_LATENCY_S


def test_hanging_calls_cost_their_own_time_only():
    """One call in a hundred hangs for 5 s: its place is lost so long, and nothing else."""
    with simulated(1, Limits(concurrency=24), noise="hang") as world:
        world.run(300)
        assert world.rate(1, 4) >= 0.9 * 24 / (MEAN_LATENCY_S + 0.05)


def test_sparse_random_refusals_do_not_hide_the_limit():
    with simulated(4, slots=12, noise="refused") as world:
        world.run(360)
        assert world.share_refused() <= 0.03  # one in a hundred is the provider's own
        assert world.rate(3, 5) >= 0.9 * 12 / MEAN_LATENCY_S


def test_without_redis_what_was_found_holds_at_a_safe_share_and_all_of_it_afterwards():
    with simulated(4, rate=30) as world:
        world.run(240)
        world.steps.is_away = True
        world.run(120)
        assert world.share_refused(4, 5) <= 0.01
        assert 0.3 * 30 <= world.rate(4, 5) <= 0.75 * 30
        world.steps.is_away = False
        world.run(180)
        assert world.rate(7, 8) >= 0.9 * 30


def test_a_limit_found_without_redis_is_kept_too():
    with simulated(1, rate=30) as world:
        world.steps.is_away = True
        world.run(300)
        assert world.share_refused() <= 0.03
        assert world.rate(3, 4) >= 0.4 * 30


def test_while_nothing_was_refused_one_redis_call_a_second_tells_so():
    with simulated(1) as world:
        world.run(10)
        assert world.workers[0].window.size >= 256
        assert world.steps.calls <= 25
