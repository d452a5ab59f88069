"""The pacing arithmetic: no window of time holds more than its limit allows, whatever the order of events."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch.domain.gcra import Cost, Meter
from batch.domain.limits import Limits, dimensions, start_utilisation

REQUESTS = dimensions(Limits(requests_per_minute=600))
TOKENS = dimensions(Limits(tokens_per_minute=60_000))


def lease(meter, now, costs, dims, ahead_s=4.0):
    return meter.lease(now, costs, dims, use=0.99, ahead_s=ahead_s)


def test_slots_are_evenly_spaced():
    slots = lease(Meter(), 0.0, [Cost()] * 5, REQUESTS).slots
    gaps = [b - a for a, b in itertools.pairwise(slots)]
    assert slots[0] == 0.0
    assert gaps == pytest.approx([0.1 / 0.99] * 4)


def test_the_look_ahead_limits_a_lease_and_tells_the_wait():
    grant = lease(Meter(), 0.0, [Cost()] * 100, REQUESTS, ahead_s=1.0)
    assert len(grant.slots) == 10
    assert grant.wait_s == pytest.approx(1.01, abs=0.001)


def test_tokens_may_run_five_seconds_ahead_once_they_were_saved():
    meter = Meter()
    lease(meter, 0.0, [Cost(1)], TOKENS)
    later = lease(meter, 100.0, [Cost(1_000)] * 8, TOKENS).slots
    assert sum(slot == 0.0 for slot in later) == 5


def test_a_fresh_bucket_has_no_saved_tokens():
    """After a loss of Redis nothing is known of the last seconds."""
    assert lease(Meter(), 0.0, [Cost(1_000)] * 3, TOKENS).slots[1] == pytest.approx(1 / 0.99)


def test_a_request_larger_than_the_limit_passes_and_is_paid_for_afterwards():
    meter = Meter()
    assert lease(meter, 0.0, [Cost(120_000)], TOKENS).slots == [0.0]
    assert lease(meter, 0.0, [Cost(1)], TOKENS).wait_s == pytest.approx(120 / 0.99, abs=0.1)


def test_settling_back_never_saves_more_than_the_tolerance():
    meter = Meter()
    lease(meter, 0.0, [Cost(10_000)], TOKENS)
    meter.settle(50.0, TOKENS, Cost(-1_000_000), use=0.99)
    assert meter.arrivals["t"] == 45.0


def test_a_hold_gives_nothing_before_its_end():
    meter = Meter()
    meter.hold(10.0, 3.0)
    assert lease(meter, 11.0, [Cost()], REQUESTS).slots == [pytest.approx(2.0)]


def test_an_hour_is_never_overrun_by_its_advance():
    """A tenth of an hour may come early; the sliding window still counts it."""
    dims = dimensions(Limits(requests_per_hour=100))
    meter, sent, now = Meter(), [], 0.0
    while now < 4 * 3600:
        sent += [now + slot for slot in lease(meter, now, [Cost()] * 20, dims).slots]
        now += 7.0
    worst = max(sum(start <= at < start + 3600 for at in sent) for start in sent)
    assert worst <= 100
    assert len(sent) >= 4 * 100 * 0.95


def test_hard_seconds_are_paced_lower():
    assert start_utilisation(Limits(requests_per_second=30, hard_second=True))[0] == 0.97
    assert start_utilisation(Limits(requests_per_second=166, hard_second=True))[0] == 0.98
    assert start_utilisation(Limits(requests_per_minute=600))[0] == 0.99


def test_learned_limits_only_lower_what_the_user_configured():
    given = {"requests_per_minute": 100.0}
    configured = Limits(**given, sources={"requests_per_minute": "config"}, configured=given)
    assert configured.with_learned({"requests_per_minute": 500}) is configured
    lowered = configured.with_learned({"requests_per_minute": 60})
    assert (lowered.requests_per_minute, lowered.sources["requests_per_minute"]) == (60, "headers")
    restored = lowered.with_learned({"requests_per_minute": 500})
    assert (restored.requests_per_minute, restored.sources["requests_per_minute"]) == (100, "config")
    assert configured.with_learned({"requests_per_second": 1, "requests_per_hour": 9}) is configured
    preset = Limits(requests_per_minute=100, sources={"requests_per_minute": "preset"})
    raised = preset.with_learned({"requests_per_minute": 500, "concurrency": 3})
    assert (raised.requests_per_minute, raised.sources["requests_per_minute"]) == (500, "headers")
    assert raised.concurrency is None


steps = st.lists(
    st.tuples(st.floats(0, 3), st.lists(st.integers(0, 4_000), min_size=1, max_size=12)),
    min_size=1, max_size=30,
)  # fmt: skip


@settings(max_examples=150)
@given(steps)
def test_no_window_holds_more_than_its_limit(sequence):
    """Any moments, sizes and bundles: units in [a, b] stay below (b - a + tolerance) · rate + one request."""
    dims = dimensions(Limits(requests_per_second=5, tokens_per_minute=60_000, output_tokens_per_minute=30_000))
    meter, now, sent = Meter(), 0.0, []
    for wait, sizes in sequence:
        now += wait
        costs = [Cost(size, size // 3) for size in sizes]
        sent += [(now + slot, cost) for slot, cost in zip(lease(meter, now, costs, dims).slots, costs, strict=False)]
    assert_within(sent, dims)


def assert_within(sent, dims, share=0.99):
    for dim in dims:
        rows = [(at, cost.of(dim.unit)) for at, cost in sent if cost.of(dim.unit) > 0]
        for i, (start, _) in enumerate(rows):
            total = 0.0
            for at, amount in rows[i:]:
                # the last one may be of any size: it is paid for by those after it
                assert total <= (at - start + dim.tolerance_s) * dim.rate * share + 0.02 * dim.rate
                total += amount
