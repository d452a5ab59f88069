"""Replicas of an engine: whom a call goes to, who is out, and what the engine's own numbers do to the lanes."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx

from batch.clock import SYSTEM_CLOCK
from batch.domain.outcome import Failure, FailureKind, Success
from batch.providers.adapter import Adapter
from batch.providers.catalog import Catalog
from batch.providers.engine_load import LoadReading, read_header, read_loads, read_metrics, read_slots
from batch.providers.presets import load_preset
from batch.providers.transport import HttpxSeam
from batch.settings import load_settings
from workers.engine_process import shown_command
from workers.engines import IN_A_ROW, Engine, Replica

URLS = ["http://a/v1", "http://b/v1"]
VLLM = """# HELP vllm:num_requests_running Number of requests
vllm:num_requests_running{engine="0",model_name="m"} 40.0
vllm:num_requests_running{engine="1",model_name="m"} 24.0
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
vllm:generation_tokens_total{engine="0",model_name="m"} 1e+06
"""


def on_a_loop(story: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @functools.wraps(story)
    def run() -> None:
        asyncio.run(story())

    return run


@dataclass
class FakeLane:
    """What an engine tells."""

    context: Any = field(default_factory=lambda: SimpleNamespace(facts=()))
    woken: int = 0
    loads: list[Any] = field(default_factory=list)

    def wake(self) -> None:
        self.woken += 1

    def note_load(self, *load: Any) -> None:
        self.loads.append(load)


def make_engine(answer: Callable[[httpx.Request], httpx.Response], kind: str = "vllm") -> Engine:
    settings = load_settings(environ={}, providers={"eng": {"engine": kind, "base_urls": URLS}})
    provider = Catalog.from_settings(settings, environ={}).providers["eng"]
    adapter = Adapter(provider, HttpxSeam(httpx.MockTransport(answer), 1 << 20), SYSTEM_CLOCK, secrets=list)
    return Engine(adapter, SYSTEM_CLOCK, lambda name, models: None)


def healthy(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"version": "0.33.0", "data": [{"id": "m"}]})


def success() -> Success:
    return Success(status=200, body=b"{}", data={}, headers={}, rate_headers={}, latency_s=0.1)


def fault(kind: FailureKind) -> Failure:
    return Failure(kind, "gone", sent=kind is not FailureKind.CONNECT)


def busy(engine: Engine, *tokens: int) -> list[Replica]:
    for replica, count in zip(engine.replicas, tokens, strict=True):
        replica.tokens, replica.in_flight = count, 10
    return engine.replicas


def test_the_replica_with_the_fewest_outstanding_tokens_is_next() -> None:
    """What others have in flight there counts as much as ours."""
    engine = make_engine(healthy)
    first, second = busy(engine, 1000, 900)
    assert engine.pick(None) is second
    second.load = LoadReading(running=60, waiting=0)
    assert engine.pick(None) is first


def test_a_group_stays_at_its_home_until_that_is_far_busier() -> None:
    """Half as much again, and one call."""
    engine = make_engine(healthy)
    busy(engine, 1000, 1000)
    home = engine.pick("group")
    assert home is not None
    assert all(engine.pick("group") is home for _ in range(5))
    assert {engine.pick(f"g{i}") for i in range(20)} == set(engine.replicas)
    home.tokens = 1600
    assert engine.pick("group") is home
    home.tokens = 1800
    assert engine.pick("group") is not home


@on_a_loop
async def test_a_call_moves_from_a_replica_that_died_and_succeeds() -> None:
    """The line never hears of it."""
    engine = make_engine(lambda request: httpx.Response(503 if request.url.host == dead else 200, json={}))
    dead = "a"
    sent: list[str] = []

    async def send(base_url: str) -> Any:
        sent.append(base_url)
        return fault(FailureKind.DISCONNECT) if base_url == URLS[0] else success()

    for kept in (engine.replicas[1],):
        kept.tokens = 50
    assert isinstance(await engine.call(send, tokens=10, group=None), Success)
    assert sent == URLS
    assert [replica.is_up for replica in engine.replicas] == [False, True]
    assert [replica.in_flight for replica in engine.replicas] == [0, 0]


@on_a_loop
async def test_a_call_that_kills_two_replicas_ends_with_the_failure() -> None:
    """It may be what kills them; from here on it costs attempts."""
    engine = make_engine(lambda request: httpx.Response(503))
    engine.replicas.append(Replica("http://c/v1"))
    sent: list[str] = []

    async def send(base_url: str) -> Any:
        sent.append(base_url)
        return fault(FailureKind.SERVER_ERROR)

    outcome = await engine.call(send, tokens=10, group=None)
    assert isinstance(outcome, Failure) and outcome.kind is FailureKind.SERVER_ERROR
    assert len(sent) == 2


@on_a_loop
async def test_a_call_that_was_alone_with_a_replica_that_died_says_so() -> None:
    """Among others it may be any of them."""
    engine = make_engine(lambda request: httpx.Response(503))
    engine.replicas.pop()

    async def send(base_url: str) -> Any:
        return fault(FailureKind.SERVER_ERROR)

    alone = await engine.call(send, tokens=10, group=None)
    engine.replicas[0].is_up, engine.replicas[0].in_flight = True, 1
    among_others = await engine.call(send, tokens=10, group=None)
    assert [outcome.ended_server for outcome in (alone, among_others)] == [True, False]


@on_a_loop
async def test_without_a_replica_nothing_is_sent() -> None:
    """And nothing can have been charged."""
    engine = make_engine(healthy)
    for replica in engine.replicas:
        replica.is_up = False
    outcome = await engine.call(lambda url: None, tokens=1, group=None)
    assert isinstance(outcome, Failure) and (outcome.kind, outcome.sent) == (FailureKind.CONNECT, False)


@on_a_loop
async def test_a_healthy_replica_that_only_fails_is_left_out_for_a_while() -> None:
    """By its failures in a row, while another one serves."""
    engine = make_engine(healthy)
    failing = engine.replicas[0]

    async def send(base_url: str) -> Any:
        return fault(FailureKind.SERVER_ERROR) if base_url == URLS[0] else success()

    for _ in range(IN_A_ROW):
        engine.replicas[1].tokens = 1000  # so that the failing one is tried first
        last = await engine.call(send, tokens=1, group=None)
    assert not failing.is_up and isinstance(last, Success)
    assert not await engine.look(failing)


@on_a_loop
async def test_a_replica_that_answers_again_wakes_the_lanes_and_says_what_it_is() -> None:
    """With its version in the facts of every answer."""
    engine, lane = make_engine(healthy), FakeLane()
    engine.attach(lane)
    engine.replicas[0].is_up = False
    assert await engine.look(engine.replicas[0])
    assert lane.woken == 1
    assert lane.context.facts == ("engine:vLLM 0.33.0",)
    assert engine.facts()[0]["models"] == ["m"]


def test_gauges_of_all_schedulers_are_added_and_the_fullest_cache_counts() -> None:
    """vLLM with two engines behind one port."""
    found = read_metrics(VLLM, load_preset("vllm").engine)
    assert found is not None
    assert (found.running, found.waiting, found.cache_used, found.preempted, found.tokens) == (64, 3, 0.75, 2, 1e6)
    assert read_metrics("other 1\n", load_preset("vllm").engine) is None


def test_slots_loads_and_headers_tell_the_same() -> None:
    """And what is not understood is nothing."""
    slots = read_slots(b'[{"id":0,"is_processing":true},{"id":1,"is_processing":false}]', in_flight=3)
    assert slots is not None and (slots.running, slots.waiting) == (1, 1)
    loads = read_loads(b'{"loads":[{"num_running_reqs":7,"num_waiting_reqs":2,"token_usage":0.5}]}')
    assert loads is not None and (loads.running, loads.waiting, loads.cache_used) == (7, 2, 0.5)
    value = 'JSON {"named_metrics": {"kv_cache_usage_perc": 0.42, "num_requests_waiting": 5.0}}'
    header = read_header(value, in_flight=20)
    assert header is not None and (header.running, header.waiting, header.cache_used) == (15, 5, 0.42)
    assert read_header("TEXT a=1", 3) is None
    assert read_slots(b"{}", 1) is None and read_loads(b"no") is None


def test_a_command_is_shown_without_its_secrets() -> None:
    """It stands in the batch's report."""
    assert shown_command(["vllm", "serve", "M", "--api-key", "k", "--hf-token=t", "-n", "1"]) == (
        "vllm serve M --api-key *** --hf-token=*** -n 1"
    )
