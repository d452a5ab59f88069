"""Every preset against the simulator playing its provider: each fault is named for what it is, and each key
that is refused is named in OpenAI's spelling."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from batch.domain.outcome import Failure, FailureKind, Outcome, Success
from batch.providers.adapter import Adapter, make_adapter
from batch.providers.catalog import Catalog
from batch.providers.presets import preset_names
from batch.providers.probe import probe_provider
from batch.settings import Settings
from batch.simulator.config import Fault
from batch.simulator.personalities import load_personalities
from batch.simulator.server import Simulator, start_simulator

K = FailureKind
PLAYED = [name for name in preset_names() if name in load_personalities()]

# What a fault may be called: a provider whose error body says less than the cause is taken at its word.
EXPECTED: dict[str, set[FailureKind]] = {
    "rate_limit": {K.RATE_LIMIT, K.RATE_CONCURRENCY, K.RATE_DYNAMIC},
    "quota": {K.QUOTA, K.RATE_LIMIT, K.RATE_CONCURRENCY},
    "daily": {K.RATE_DAILY, K.RATE_LIMIT, K.RATE_CONCURRENCY},
    "budget": {K.BUDGET, K.QUOTA},
    "bad_key": {K.BAD_KEY},
    "forbidden": {K.FORBIDDEN},
    "model_not_found": {K.MODEL_NOT_FOUND},
    "context_length": {K.CONTEXT_LENGTH},
    "content_policy": {K.CONTENT_POLICY},
    "overloaded": {K.OVERLOADED},
    "unavailable": {K.UNAVAILABLE},
    "schema_failed": {K.SCHEMA_FAILED},
    "redirect": {K.MODEL_NOT_FOUND},
    "reset": {K.DISCONNECT},
    "reset_mid_body": {K.DISCONNECT},
    "truncated_json": {K.BAD_ANSWER},
    "html": {K.BAD_ANSWER},
    "empty_body": {K.BAD_ANSWER},
    "no_choices": {K.BAD_ANSWER},
    "error_in_200": {K.SERVER_ERROR, K.OVERLOADED},
}
# Where the body says it plainly, only the plain name will do.
PLAIN = {
    ("openai", "quota"): K.QUOTA,
    ("openai", "daily"): K.RATE_DAILY,
    ("deepseek", "rate_limit"): K.RATE_CONCURRENCY,
}
KEYS: dict[str, Any] = {
    "n": 2, "seed": 1, "stop": ["x"], "logprobs": True, "presence_penalty": 0.5, "logit_bias": {"1": 1}, "user": "u",
    "temperature": 0.5, "parallel_tool_calls": False, "reasoning_effort": "low",
}  # fmt: skip


def adapter_of(name: str, simulator: Simulator) -> Adapter:
    settings = Settings(
        providers={name: {"base_url": simulator.base_url, "api_key_env": "K", "timeout_s": 10.0}}  # type: ignore[dict-item]
    )
    catalog = Catalog.from_settings(settings, environ={"K": "sk-test-12345678"})
    return make_adapter(catalog, name, settings)


def model_of(name: str) -> str:
    return load_personalities()[name].models[0]


async def ask(adapter: Adapter, model: str, **keys: Any) -> Outcome:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **keys}
    return await adapter.call("/v1/chat/completions", orjson.dumps(body))


@pytest.mark.parametrize("name", PLAYED)
def test_each_fault_of_each_provider_is_named(name: str) -> None:
    async def story(simulator: Simulator) -> dict[str, Outcome]:
        adapter, told = adapter_of(name, simulator), {}
        for kind in EXPECTED:
            simulator.reconfigure(faults=(Fault(kind),))
            told[kind] = await ask(adapter, model_of(name))
        await adapter.close()
        return told

    with start_simulator(personality=name) as simulator:
        told = asyncio.run(story(simulator))
    found = {kind: outcome.kind if isinstance(outcome, Failure) else None for kind, outcome in told.items()}
    assert {kind: value for kind, value in found.items() if value not in EXPECTED[kind]} == {}
    assert all(found[kind] is plain for (who, kind), plain in PLAIN.items() if who == name)


@pytest.mark.parametrize("name", PLAYED)
def test_each_refused_key_is_named(name: str) -> None:
    """What the plan is made anew without."""

    async def story(simulator: Simulator) -> dict[str, tuple[Any, Any]]:
        adapter, told = adapter_of(name, simulator), {}
        for key, value in KEYS.items():
            simulator.reconfigure(features=((key, "rejected"),))
            outcome = await ask(adapter, model_of(name), **{key: value})
            told[key] = (outcome.kind, outcome.param) if isinstance(outcome, Failure) else (None, None)
        await adapter.close()
        return told

    with start_simulator(personality=name) as simulator:
        assert asyncio.run(story(simulator)) == {key: (K.UNSUPPORTED_PARAM, key) for key in KEYS}


@pytest.mark.parametrize("name", ["mx4", "modelux", "xai", "groq", "openai", "vllm", "transformers"])
def test_a_probe_never_contradicts_a_claim_to_nativeness(name: str) -> None:
    """Where the preset says native, the provider as documented does it."""

    async def story(simulator: Simulator) -> dict[str, tuple[str, str]]:
        adapter = adapter_of(name, simulator)
        report = await probe_provider(adapter, model_of(name), now=1_790_000_000.0)
        await adapter.close()
        assert report.failure is None
        card = adapter.provider.card(model_of(name))
        return {feature: (card.of(feature).value, found) for feature, found in report.support.items()}

    with start_simulator(personality=name) as simulator:
        pairs = asyncio.run(story(simulator))
    assert pairs
    known = {("groq", "json_schema")}  # best effort there: the simulator plays the stricter reading
    wrong = {k: v for k, v in pairs.items() if v[0] == "native" and v[1] != "native" and (name, k) not in known}
    assert wrong == {}


def test_a_completed_call_brings_usage_and_headers() -> None:
    async def story(simulator: Simulator) -> Outcome:
        adapter = adapter_of("openai", simulator)
        outcome = await ask(adapter, model_of("openai"))
        await adapter.close()
        return outcome

    with start_simulator(personality="openai", headers="openai") as simulator:
        outcome = asyncio.run(story(simulator))
    assert isinstance(outcome, Success)
    assert outcome.data["usage"]["completion_tokens"] > 0
    assert outcome.request_id
