"""The Redis steps of pacing, on a real Valkey whose time the test moves.

Whatever several workers do in whatever order — lease, return, crash, skewed clocks — no window of time
holds more calls or tokens than its limit allows; and Lua and Python pace alike.
"""

from __future__ import annotations

import asyncio
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from batch.domain.gcra import Cost, Meter
from batch.domain.limits import Limits, dimensions
from batch.settings import SHARE_EXPIRES_S
from tests.unit.test_gcra import assert_within
from workers import pacer_scripts
from workers.pacer_steps import Bucket, Steps

START_US = 1_790_000_000_000_000
LIMITS = Limits(requests_per_second=5, tokens_per_minute=60_000, output_tokens_per_minute=30_000)


class Stage:
    """Steps whose scripts read the key `clock` in place of TIME, and the loop that runs them."""

    def __init__(self, url):
        self.loop = asyncio.new_event_loop()
        self.redis = Redis.from_url(url)
        self.now_us = START_US
        with pytest.MonkeyPatch.context() as patch:
            for name, text in list(vars(pacer_scripts).items()):
                if re.fullmatch("[A-Z]+", name):
                    told = text.replace("redis.call('TIME')", "cjson.decode(redis.call('GET', 'clock'))")
                    patch.setattr(pacer_scripts, name, told)
            self.steps = Steps(self.redis)
        self.set(0.0)

    def run(self, work):
        return self.loop.run_until_complete(work)

    def reset(self):
        self.run(self.redis.flushall())
        self.now_us = START_US
        self.set(0.0)

    def set(self, advance_s):
        self.now_us += int(advance_s * 1e6)
        self.run(self.redis.set("clock", f"[{self.now_us // 1_000_000},{self.now_us % 1_000_000}]"))

    @property
    def now_s(self):
        return (self.now_us - START_US) / 1e6

    def close(self):
        self.run(self.redis.aclose())
        self.loop.close()


@pytest.fixture(scope="module")
def stage(valkey):
    made = Stage(valkey)
    made.reset()
    yield made
    made.close()


def bucket(limits=LIMITS, key="batchmill:pace:{p/k}:model:m", use=0.99):
    return Bucket(key, dimensions(limits), use, use)


costs = st.lists(st.integers(0, 4_000).map(lambda size: Cost(size, size // 3)), min_size=1, max_size=12)
events = st.lists(
    st.tuples(st.floats(0, 2.5), costs, st.floats(0.2, 4.0), st.integers(0, 4)), min_size=1, max_size=25
)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(events)
def test_several_workers_together_stay_within_every_limit(stage, sequence):
    """Which worker asks does not matter. Some calls go back if nobody leased since; the dead never use theirs."""
    stage.reset()
    one, sent = bucket(), []
    for wait, wanted, ahead, returned in sequence:
        stage.set(wait)
        lease = stage.run(stage.steps.lease([one], wanted, ahead_s=ahead))
        used = list(zip(lease.slots, wanted, strict=False))
        back = min(returned, len(used))
        if back:
            kept = len(used) - back
            before = lease.at_us + round(lease.slots[kept - 1] * 1e6) if kept else lease.at_us
            last = lease.at_us + round(lease.slots[-1] * 1e6)
            if stage.run(stage.steps.give_back([one], wanted[kept : len(used)], last_us=last, before_us=before)):
                used = used[:kept]
        sent += [(stage.now_s + slot, cost) for slot, cost in used]
    sent.sort(key=lambda row: row[0])
    assert_within(sent, one.dims)


@quick
@given(events)
def test_lua_and_python_give_the_same_slots(stage, sequence):
    stage.reset()
    one, meter = bucket(), Meter()
    for wait, wanted, ahead, _returned in sequence:
        stage.set(wait)
        lease = stage.run(stage.steps.lease([one], wanted, ahead_s=ahead))
        grant = meter.lease(stage.now_s, wanted, one.dims, use=0.99, ahead_s=ahead)
        if len(lease.slots) != len(grant.slots):  # microseconds decide at the edge of the look-ahead
            edge = max(lease.slots + grant.slots, default=0.0)
            assert edge == pytest.approx(ahead, abs=0.001)
            return
        assert lease.slots == pytest.approx(grant.slots, abs=0.0005)


@quick
@given(st.lists(st.tuples(st.floats(0, 2), st.integers(-5_000, 5_000)), min_size=1, max_size=15))
def test_settling_never_saves_more_than_the_tolerance(stage, sequence):
    stage.reset()
    one = bucket(Limits(tokens_per_minute=60_000))
    for wait, difference in sequence:
        stage.set(wait)
        stage.run(stage.steps.lease([one], [Cost(500)], ahead_s=1.0, settled=Cost(difference)))
        arrival = int(stage.run(stage.redis.hget(one.key, "t:t")))
        assert arrival >= stage.now_us - 5_000_001


@quick
@given(st.lists(st.tuples(st.floats(0, 900), st.integers(1, 20)), min_size=5, max_size=40))
def test_no_hour_holds_more_than_its_limit(stage, sequence):
    stage.reset()
    one = bucket(Limits(requests_per_hour=50))
    sent = []
    for wait, count in sequence:
        stage.set(wait)
        lease = stage.run(stage.steps.lease([one], [Cost()] * count, ahead_s=4.0))
        sent += [stage.now_s + slot for slot in lease.slots]
    for start in sent:
        assert sum(start <= at < start + 3_600 for at in sent) <= 50


def test_the_lane_and_its_key_are_reserved_together(stage):
    """The key's two calls a second bind although the lane would allow five; nothing is taken from one alone."""
    stage.reset()
    lane, key = bucket(), bucket(Limits(requests_per_second=2), key="batchmill:pace:{p/k}:key")
    lease = stage.run(stage.steps.lease([lane, key], [Cost(1)] * 5, ahead_s=1.2))
    assert lease.slots == pytest.approx([0.0, 0.505, 1.010], abs=0.001)


def test_a_refusal_holds_every_worker(stage):
    stage.reset()
    one = bucket()
    stage.run(stage.steps.refused([one], 3.0))
    assert stage.run(stage.steps.lease([one], [Cost()], ahead_s=4.0)).slots == [pytest.approx(3.0)]


def test_a_pause_reaches_whoever_asks_and_ends_by_itself(stage):
    stage.reset()
    one = bucket()
    stage.run(stage.steps.pause(one.key, 60.0, "bad_key", 'answered 401 "no"'))
    paused = stage.run(stage.steps.lease([one], [Cost()], ahead_s=1.0)).paused
    assert paused == (pytest.approx(START_US / 1e6 + 60), "bad_key", 'answered 401 "no"')
    stage.set(61.0)
    assert stage.run(stage.steps.lease([one], [Cost()], ahead_s=1.0)).slots == [0.0]


def test_headers_only_lower_what_is_believed_to_remain(stage):
    stage.reset()
    one = bucket(Limits(tokens_per_minute=60_000, requests_per_hour=100))
    stage.run(stage.steps.lease([one], [Cost(1)], ahead_s=1.0))
    stage.set(60.0)
    stage.run(stage.steps.lower(one, {"t": 0.0, "rh": 30.0}, 1.0))
    stage.run(stage.steps.lower(one, {"t": 60_000.0, "rh": 99.0}, 1.0))
    slots = stage.run(stage.steps.lease([one], [Cost(1)] * 60, ahead_s=4.0)).slots
    assert slots[0] > 0
    assert len(slots) <= 30


def test_many_refusals_shrink_the_share_in_use_and_clean_minutes_restore_it(stage):
    stage.reset()
    one = Bucket("batchmill:pace:{p/k}:model:m", dimensions(Limits(requests_per_second=100)), 0.99, 0.995)

    def minute(refusals):
        for _ in range(60):
            stage.set(1.0)
            stage.run(stage.steps.lease([one], [Cost()] * 20, ahead_s=1.0))
        for _ in range(refusals):
            stage.run(stage.steps.refused([one]))
        stage.set(1.0)
        return stage.run(stage.steps.lease([one], [Cost()], ahead_s=1.0)).use

    minute(0)
    before = minute(40)
    after = minute(0)
    assert after < before
    assert minute(0) > after - 0.001
    for _ in range(8):
        last = minute(0)
    assert last > after


def test_windows_are_seeded_once_after_a_loss_of_redis(stage):
    stage.reset()
    one = bucket(Limits(requests_per_hour=50))
    stage.run(stage.steps.lease([one], [Cost()] * 5, ahead_s=4.0))
    for _ in range(9):
        stage.set(60.0)
        stage.run(stage.steps.lease([one], [Cost()] * 20, ahead_s=4.0))
    saved = stage.run(stage.steps.read_windows(one))
    used = sum(saved["rh"].values())
    assert used >= 10
    stage.run(stage.redis.delete(one.key))
    stage.run(stage.steps.seed(one, saved))
    stage.run(stage.steps.seed(one, saved))
    assert sum(stage.run(stage.steps.read_windows(one))["rh"].values()) == used


def test_concurrency_is_shared_fairly_and_never_exceeded(stage):
    stage.reset()
    share = stage.steps.share

    def ask(worker, in_use, want):
        return stage.run(share("k", worker, cap=10, in_use=in_use, want=want))

    assert ask("a", 0, 30) == 10
    assert ask("b", 0, 30) == 0  # all is held; b's wish is known now
    assert ask("a", 10, 30) == 5
    assert ask("a", 7, 30) == 5
    assert ask("b", 0, 30) == 3
    assert ask("a", 5, 30) == 5
    assert ask("b", 3, 30) == 5


def test_a_small_wish_is_met_whole_beside_a_large_one(stage):
    stage.reset()
    stage.run(stage.steps.share("k", "a", cap=10, in_use=0, want=100))
    stage.run(stage.steps.share("k", "b", cap=10, in_use=0, want=2))
    assert stage.run(stage.steps.share("k", "a", cap=10, in_use=8, want=100)) == 8
    assert stage.run(stage.steps.share("k", "b", cap=10, in_use=0, want=2)) == 2


def test_a_dead_worker_frees_its_concurrency_by_expiry(stage):
    stage.reset()
    stage.run(stage.steps.share("k", "dead", cap=10, in_use=10, want=10))
    assert stage.run(stage.steps.share("k", "b", cap=10, in_use=0, want=10)) == 0
    stage.set(SHARE_EXPIRES_S + 1)
    assert stage.run(stage.steps.share("k", "b", cap=10, in_use=0, want=10)) == 10


@quick
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 12), st.floats(0, 1.0)), min_size=1, max_size=40))
def test_the_concurrency_cap_holds_under_any_interleaving(stage, sequence):
    """Each worker starts calls up to its answer and ends some; together they never hold more than the cap."""
    stage.reset()
    used = dict.fromkeys("abcd", 0)
    for worker, want, ended in sequence:
        used[worker] -= int(used[worker] * ended)
        target = stage.run(stage.steps.share("k", worker, cap=10, in_use=used[worker], want=used[worker] + want))
        used[worker] = max(used[worker], min(target, used[worker] + want))
        assert sum(used.values()) <= 10


def test_every_key_has_a_time_to_live(stage):
    stage.reset()
    one = bucket(Limits(requests_per_hour=50, tokens_per_minute=100))
    run, steps = stage.run, stage.steps
    run(steps.lease([one], [Cost(5)], ahead_s=1.0))
    run(steps.refused([one], 1.0))
    run(steps.share(one.key, "w", cap=3, in_use=0, want=1))
    run(steps.pause("batchmill:pace:{p/k}:key", 5.0, "x", "y"))
    run(steps.lower(bucket(key="batchmill:pace:{p/k}:model:other"), {"t": 1.0}, 0.99))
    run(steps.count(bucket(Limits(requests_per_day=5), key="batchmill:pace:{p/k}:model:third"), {"rd": 2.0}))
    keys = [key for key in run(stage.redis.keys("*")) if key != b"clock"]
    assert len(keys) == 5
    assert all(run(stage.redis.pttl(key)) > 0 for key in keys)
