"""The pacer of a process: permits in real time on a real Valkey, several pacers standing for several workers."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest
from redis.asyncio import Redis

from batch.clock import SYSTEM_CLOCK
from batch.domain.limits import Limits
from batch.domain.outcome import Failure, FailureKind, Success
from batch.providers.headers import RateReading, RateWindow
from tests.harness.servers import running_valkey
from workers.pacer import LanePaused, LaneView, Pacer

OK = Success(200, b"{}", {})


def lane(number=1, limits=None, **extra):
    return LaneView(number, "p", "k", f"m{number}", limits or Limits(), **extra)


def on(url, story, workers=1, **extra):
    """Run `story(pacers)` with one pacer per worker, each with a connection of its own."""

    async def run():
        connections = [Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.5) for _ in range(workers)]
        pacers = [Pacer(redis, worker=f"w{i}", **extra) for i, redis in enumerate(connections)]
        try:
            return await asyncio.wait_for(story(*pacers), 30)
        finally:
            for pacer, redis in zip(pacers, connections, strict=True):
                await pacer.close()
                await redis.aclose()

    return asyncio.run(run())


async def take(pacer, view, count, est=0):
    """The moments at which `count` calls were permitted."""

    async def one():
        permit = await pacer.permit(view, est)
        at = time.monotonic()
        pacer.done(permit, outcome=OK)
        return at

    return sorted(await asyncio.gather(*(one() for _ in range(count))))


def test_without_a_known_limit_no_redis_call_is_made(valkey_url):
    async def story(pacer):
        await take(pacer, lane(), 1_000, est=100)
        assert pacer.redis_calls == 0

    on(valkey_url, story)


def test_a_limit_that_was_found_before_a_restart_holds_from_the_first_call(valkey_url):
    kept = {"kind": "rate", "floor": 40.0, "ceiling": 50.0}

    async def story(pacer):
        view = lane(found=kept)
        moments = await take(pacer, view, 21)
        assert moments[-1] - moments[0] >= 20 / 50 - 0.02
        assert pacer.keep_found(view)["kind"] == "rate"

    on(valkey_url, story)


def test_permits_come_at_their_slots_and_few_redis_calls_carry_them(valkey_url):
    async def story(pacer):
        moments = await take(pacer, lane(limits=Limits(requests_per_second=100)), 60)
        gaps = [b - a for a, b in itertools.pairwise(moments)]
        assert moments[-1] - moments[0] >= 59 * 0.01 - 0.02
        assert sum(gap < 0.002 for gap in gaps) < 6
        assert pacer.redis_calls <= 12

    on(valkey_url, story)


def test_two_workers_share_one_limit(valkey_url):
    async def story(one, two):
        limits = Limits(requests_per_second=50)
        both = await asyncio.gather(take(one, lane(limits=limits), 20), take(two, lane(limits=limits), 20))
        moments = sorted(itertools.chain(*both))
        assert moments[-1] - moments[0] >= 39 / 50 - 0.05

    on(valkey_url, story, workers=2)


def test_a_limit_of_the_key_holds_for_all_its_models(valkey_url):
    async def story(pacer):
        limits = Limits(requests_per_second=50, scope="key")
        both = await asyncio.gather(
            take(pacer, lane(1, limits), 15), take(pacer, lane(2, limits), 15)
        )
        moments = sorted(itertools.chain(*both))
        assert moments[-1] - moments[0] >= 29 / 50 - 0.05

    on(valkey_url, story)


def test_tokens_are_paced_and_what_was_not_used_comes_back(valkey_url):
    """1,000 reserved and 100 used each: with refunds, the pace follows what is really used."""

    async def story(pacer):
        view = lane(limits=Limits(tokens_per_minute=600_000, charge="reserve_refund"))
        began = time.monotonic()
        for _ in range(30):
            permit = await pacer.permit(view, 1_000, 900)
            pacer.done(permit, actual_tokens=100, actual_output=50, outcome=OK)
        assert time.monotonic() - began < 2.0  # three seconds without refunds

    on(valkey_url, story)


def test_concurrency_is_never_exceeded_by_all_workers_together(valkey_url):
    async def story(*pacers):
        view = lane(limits=Limits(concurrency=6))
        running, most = 0, 0

        async def call(pacer):
            nonlocal running, most
            permit = await pacer.permit(view)
            running += 1
            most = max(most, running)
            await SYSTEM_CLOCK.sleep_async(0.002)
            running -= 1
            pacer.done(permit, outcome=OK)

        await asyncio.gather(*(call(pacer) for pacer in pacers for _ in range(40)))
        assert most <= 6
        assert most >= 5

    on(valkey_url, story, workers=3)


def test_a_paused_lane_refuses_with_its_reason_everywhere(valkey_url):
    async def story(one, two):
        limits = Limits(requests_per_second=50)
        await one.pause(lane(limits=limits), SYSTEM_CLOCK.now() + 60, "bad_key", 'answered 401 "no"')
        for pacer in (one, two):
            with pytest.raises(LanePaused, match="answered 401") as caught:
                await pacer.permit(lane(limits=limits))
            assert caught.value.code == "bad_key"
        await one.resume(lane(limits=limits))
        two.note_pause(lane(limits=limits), None)
        assert await two.permit(lane(limits=limits))

    on(valkey_url, story, workers=2)


def test_a_pause_wakes_lines_that_wait(valkey_url):
    async def story(pacer):
        view = lane(limits=Limits(requests_per_minute=1))
        await pacer.permit(view)
        waiting = asyncio.ensure_future(pacer.permit(view))
        await asyncio.sleep(0)
        await pacer.pause(view, SYSTEM_CLOCK.now() + 60, "quota", "no money")
        with pytest.raises(LanePaused):
            await waiting

    on(valkey_url, story)


def test_a_key_pause_reaches_every_model_of_the_key(valkey_url):
    async def story(pacer):
        first, second = lane(1), lane(2)
        await pacer.permit(second)
        await pacer.pause(first, SYSTEM_CLOCK.now() + 60, "quota", "no money", whole_key=True)
        with pytest.raises(LanePaused):
            await pacer.permit(second)

    on(valkey_url, story)


def test_a_key_pause_reaches_other_workers_with_their_next_lease(valkey_url):
    async def story(one, two):
        limits = Limits(requests_per_second=100)
        await one.pause(lane(1, limits), SYSTEM_CLOCK.now() + 60, "quota", "no money", whole_key=True)
        with pytest.raises(LanePaused, match="no money"):
            await two.permit(lane(2, limits))

    on(valkey_url, story, workers=2)


def test_a_wait_over_a_minute_holds_no_line(valkey_url):
    async def story(pacer):
        view = lane(limits=Limits(requests_per_day=1))
        await pacer.permit(view)
        with pytest.raises(LanePaused, match="1 requests a day is used up"):
            await pacer.permit(view)

    on(valkey_url, story)


def test_a_stray_429_holds_its_line_only_and_a_longer_wait_holds_the_lane(valkey_url):
    async def story(pacer):
        view = lane(limits=Limits(requests_per_second=200))

        async def refuse(wait_s):
            permit = await pacer.permit(view)
            pacer.done(permit, outcome=Failure(FailureKind.RATE_LIMIT, "", status=429, retry_after_s=wait_s))

        began = time.monotonic()
        await refuse(1.0)
        await pacer.permit(view)
        assert time.monotonic() - began < 0.5
        await refuse(1.2)
        await pacer.permit(view)
        assert time.monotonic() - began >= 1.2

    on(valkey_url, story)


def test_a_cancelled_waiter_frees_what_it_held(valkey_url):
    async def story(pacer):
        view = lane(limits=Limits(requests_per_second=2, concurrency=4))
        await pacer.permit(view)
        waiters = [asyncio.ensure_future(pacer.permit(view)) for _ in range(3)]
        while pacer.facts(view)["in_flight"] < 3:
            await asyncio.sleep(0.005)
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        assert pacer.facts(view)["in_flight"] == 1
        assert pacer.facts(view)["waiting"] == 0

    on(valkey_url, story)


def test_without_redis_a_worker_paces_at_a_safe_share():
    """Half of the limit, divided by the live workers: 100 a second among two is 25 for each."""

    async def story():
        pacer = Pacer(None, worker="w", live_workers=lambda: 2)
        moments = await take(pacer, lane(limits=Limits(requests_per_second=100)), 15)
        await pacer.close()
        assert 14 / 25 - 0.05 <= moments[-1] - moments[0] <= 14 / 25 + 0.5

    asyncio.run(story())


def test_a_redis_that_dies_costs_speed_and_one_that_returns_gives_it_back():
    with running_valkey() as url:
        redis = Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.5)

        async def story():
            pacer = Pacer(redis, worker="w")
            view = lane(limits=Limits(requests_per_second=200))
            await take(pacer, view, 20)
            await redis.execute_command("CLIENT", "PAUSE", "1500", "ALL")
            await take(pacer, view, 20)
            assert pacer.facts(view)["local"]
            while pacer.facts(view)["local"]:
                await take(pacer, view, 5)
            await pacer.close()
            await redis.aclose()

        asyncio.run(asyncio.wait_for(story(), 20))


def test_hour_counters_survive_a_redis_that_lost_everything(valkey_url):
    async def story(pacer, after):
        limits = Limits(requests_per_hour=30)
        await take(pacer, lane(limits=limits), 3)
        saved = await pacer.counters(lane(limits=limits))
        await pacer._steps._redis.flushall()
        view = lane(limits=limits, counters=saved)
        await after.permit(view)
        again = await after.counters(view)
        assert sum(again["model"]["rh"].values()) == 4

    on(valkey_url, story, workers=2)


def test_limits_are_learned_from_headers(valkey_url):
    async def story(pacer):
        view = lane()
        reading = RateReading((RateWindow("requests", 60.0, limit=120.0, remaining=119.0),))
        assert pacer.learn(view, reading) == {"requests_per_minute": 120.0}
        assert pacer.learn(view, reading) is None
        moments = await take(pacer, view, 3)
        assert moments[-1] - moments[0] >= 0.95

    on(valkey_url, story)


def test_finishing_twice_is_harmless(valkey_url):
    async def story(pacer):
        view = lane()
        permit = await pacer.permit(view)
        pacer.done(permit, outcome=OK)
        pacer.done(permit, outcome=OK)
        assert pacer.facts(view)["in_flight"] == 0

    on(valkey_url, story)
