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
from workers.pacer import Pacer
from workers.pacer_source import LanePaused, Pause
from workers.pacer_steps import Steps

OK = Success(200, b"{}", {})


def lane(pacer, number=1, limits=None, **extra):
    return pacer.lane("p", "k", f"m{number}", limits or Limits(), **extra)


def pause(code="quota", reason="no money"):
    return Pause(SYSTEM_CLOCK.now() + 60, code, reason)


def on(url, story, workers=1, **extra):
    """Run `story(pacers)` with one pacer per worker, each with a connection of its own."""

    async def run():
        connections = [Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.5) for _ in range(workers)]
        pacers = [Pacer(Steps(redis), worker=f"w{i}", **extra) for i, redis in enumerate(connections)]
        try:
            return await asyncio.wait_for(story(*pacers), 30)
        finally:
            for pacer, redis in zip(pacers, connections, strict=True):
                await pacer.close()
                await redis.aclose()

    return asyncio.run(run())


async def take(lane, count, est=0):
    """The moments at which `count` calls were permitted."""

    async def one():
        permit = await lane.permit(est)
        at = time.monotonic()
        lane.done(permit, outcome=OK)
        return at

    return sorted(await asyncio.gather(*(one() for _ in range(count))))


def test_without_a_known_limit_no_redis_call_is_made(valkey_url):
    async def story(pacer):
        await take(lane(pacer), 1_000, est=100)
        assert pacer._steps.calls == 0

    on(valkey_url, story)


def test_a_limit_that_was_found_before_a_restart_holds_from_the_first_call(valkey_url):
    kept = {"kind": "rate", "floor": 40.0, "ceiling": 50.0}

    async def story(pacer):
        paced = lane(pacer, found=kept)
        moments = await take(paced, 21)
        assert moments[-1] - moments[0] >= 20 / 50 - 0.02
        assert paced.finder.found.keep()["kind"] == "rate"

    on(valkey_url, story)


def test_permits_come_at_their_slots_and_few_redis_calls_carry_them(valkey_url):
    async def story(pacer):
        moments = await take(lane(pacer, limits=Limits(requests_per_second=100)), 60)
        gaps = [b - a for a, b in itertools.pairwise(moments)]
        assert moments[-1] - moments[0] >= 59 * 0.01 - 0.02
        assert sum(gap < 0.002 for gap in gaps) < 6
        assert pacer._steps.calls <= 12

    on(valkey_url, story)


def test_two_workers_share_one_limit(valkey_url):
    async def story(one, two):
        limits = Limits(requests_per_second=50)
        both = await asyncio.gather(take(lane(one, limits=limits), 20), take(lane(two, limits=limits), 20))
        moments = sorted(itertools.chain(*both))
        assert moments[-1] - moments[0] >= 39 / 50 - 0.05

    on(valkey_url, story, workers=2)


def test_a_limit_of_the_key_holds_for_all_its_models(valkey_url):
    async def story(pacer):
        limits = Limits(requests_per_second=50, scope="key")
        both = await asyncio.gather(
            take(lane(pacer, 1, limits), 15), take(lane(pacer, 2, limits), 15)
        )
        moments = sorted(itertools.chain(*both))
        assert moments[-1] - moments[0] >= 29 / 50 - 0.05

    on(valkey_url, story)


def test_tokens_are_paced_and_what_was_not_used_comes_back(valkey_url):
    """1,000 reserved and 100 used each: with refunds, the pace follows what is really used."""

    async def story(pacer):
        paced = lane(pacer, limits=Limits(tokens_per_minute=600_000, charge="reserve_refund"))
        began = time.monotonic()
        for _ in range(30):
            permit = await paced.permit(1_000, 900)
            paced.done(permit, actual_tokens=100, actual_output=50, outcome=OK)
        assert time.monotonic() - began < 2.0  # three seconds without refunds

    on(valkey_url, story)


def test_concurrency_is_never_exceeded_by_all_workers_together(valkey_url):
    async def story(*pacers):
        running, most = 0, 0

        async def call(paced):
            nonlocal running, most
            permit = await paced.permit()
            running += 1
            most = max(most, running)
            await SYSTEM_CLOCK.sleep_async(0.002)
            running -= 1
            paced.done(permit, outcome=OK)

        lanes = [lane(pacer, limits=Limits(concurrency=6)) for pacer in pacers]
        await asyncio.gather(*(call(paced) for paced in lanes for _ in range(40)))
        assert most <= 6
        assert most >= 5

    on(valkey_url, story, workers=3)


def test_a_paused_lane_refuses_with_its_reason_everywhere(valkey_url):
    async def story(one, two):
        lanes = [lane(pacer, limits=Limits(requests_per_second=50)) for pacer in (one, two)]
        await one.pause(lanes[0], pause("bad_key", 'answered 401 "no"'))
        for paced in lanes:
            with pytest.raises(LanePaused, match="answered 401") as caught:
                await paced.permit()
            assert caught.value.code == "bad_key"
        await lanes[0].lift_copies()
        lanes[1].resume()
        assert await lanes[1].permit()

    on(valkey_url, story, workers=2)


def test_a_pause_wakes_lines_that_wait(valkey_url):
    async def story(pacer):
        paced = lane(pacer, limits=Limits(requests_per_minute=1))
        await paced.permit()
        waiting = asyncio.ensure_future(paced.permit())
        await asyncio.sleep(0)
        await pacer.pause(paced, pause())
        with pytest.raises(LanePaused):
            await waiting

    on(valkey_url, story)


def test_a_key_pause_reaches_every_model_of_the_key(valkey_url):
    async def story(pacer):
        first, second = lane(pacer, 1), lane(pacer, 2)
        await second.permit()
        await pacer.pause(first, pause(), whole_key=True)
        with pytest.raises(LanePaused):
            await second.permit()

    on(valkey_url, story)


def test_a_key_pause_reaches_other_workers_with_their_next_lease(valkey_url):
    async def story(one, two):
        limits = Limits(requests_per_second=100)
        await one.pause(lane(one, 1, limits), pause(), whole_key=True)
        with pytest.raises(LanePaused, match="no money"):
            await lane(two, 2, limits).permit()

    on(valkey_url, story, workers=2)


def test_a_wait_over_a_minute_holds_no_line(valkey_url):
    async def story(pacer):
        paced = lane(pacer, limits=Limits(requests_per_day=1))
        await paced.permit()
        with pytest.raises(LanePaused, match="1 requests a day is used up"):
            await paced.permit()

    on(valkey_url, story)


def test_a_stray_429_holds_its_line_only_and_a_longer_wait_holds_the_lane(valkey_url):
    async def story(pacer):
        paced = lane(pacer, limits=Limits(requests_per_second=200))

        async def refuse(wait_s):
            permit = await paced.permit()
            paced.done(permit, outcome=Failure(FailureKind.RATE_LIMIT, "", status=429, retry_after_s=wait_s))

        began = time.monotonic()
        await refuse(1.0)
        await paced.permit()
        assert time.monotonic() - began < 0.5
        await refuse(1.2)
        await paced.permit()
        assert time.monotonic() - began >= 1.2

    on(valkey_url, story)


def test_a_cancelled_waiter_frees_what_it_held(valkey_url):
    async def story(pacer):
        paced = lane(pacer, limits=Limits(requests_per_second=2, concurrency=4))
        await paced.permit()
        waiters = [asyncio.ensure_future(paced.permit()) for _ in range(3)]
        while paced.facts()["in_flight"] < 3:
            await asyncio.sleep(0.005)
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        assert paced.facts()["in_flight"] == 1
        assert paced.facts()["waiting"] == 0

    on(valkey_url, story)


def test_without_redis_a_worker_paces_at_a_safe_share():
    """Half of the limit, divided by the live workers: 100 a second among two is 25 for each."""

    async def story():
        nowhere = Redis.from_url("redis://127.0.0.1:1")
        pacer = Pacer(Steps(nowhere), worker="w", live_workers=lambda: 2)
        moments = await take(lane(pacer, limits=Limits(requests_per_second=100)), 15)
        await pacer.close()
        await nowhere.aclose()
        assert 14 / 25 - 0.05 <= moments[-1] - moments[0] <= 14 / 25 + 0.5

    asyncio.run(story())


def test_a_redis_that_dies_costs_speed_and_one_that_returns_gives_it_back():
    with running_valkey() as url:
        redis = Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.5)

        async def story():
            pacer = Pacer(Steps(redis), worker="w")
            paced = lane(pacer, limits=Limits(requests_per_second=200))
            await take(paced, 20)
            await redis.execute_command("CLIENT", "PAUSE", "1500", "ALL")
            await take(paced, 20)
            assert paced.facts()["local"]
            while paced.facts()["local"]:
                await take(paced, 5)
            await pacer.close()
            await redis.aclose()

        asyncio.run(asyncio.wait_for(story(), 20))


def test_hour_counters_survive_a_redis_that_lost_everything(valkey_url):
    async def story(pacer, after):
        limits = Limits(requests_per_hour=30)
        before = lane(pacer, limits=limits)
        await take(before, 3)
        saved = await before.source.read_counters()
        await pacer._steps._redis.flushall()
        paced = lane(after, limits=limits, counters=saved)
        await paced.permit()
        again = await paced.source.read_counters()
        assert sum(again["model"]["rh"].values()) == 4

    on(valkey_url, story, workers=2)


def test_limits_are_learned_from_headers(valkey_url):
    async def story(pacer):
        paced = lane(pacer)
        reading = RateReading((RateWindow("requests", 60.0, limit=120.0, remaining=119.0),))
        assert paced.learn(reading) == {"requests_per_minute": 120.0}
        assert paced.learn(reading) == {}
        moments = await take(paced, 3)
        assert moments[-1] - moments[0] >= 0.95

    on(valkey_url, story)


def test_finishing_twice_is_harmless(valkey_url):
    async def story(pacer):
        paced = lane(pacer)
        permit = await paced.permit()
        paced.done(permit, outcome=OK)
        paced.done(permit, outcome=OK)
        assert paced.facts()["in_flight"] == 0

    on(valkey_url, story)
