"""Each personality refuses, ignores and spells as its vendor's page says."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from batch.simulator import Limit, Simulator, start_simulator
from batch.simulator.errors import ERROR_SHAPES, Problem, error_body
from batch.simulator.headers import HEADER_FAMILIES
from batch.simulator.personalities import load_personalities

FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
NAMES = sorted(load_personalities())


def ask(simulator: Simulator, model: str = "m", content: str = "Hello.", **body: Any) -> httpx.Response:
    message = {"role": "user", "content": content}
    return httpx.post(
        simulator.base_url + "/chat/completions",
        json={"model": model, "messages": [message], **body},
        headers={"authorization": "Bearer k"},
        trust_env=False,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_chat_is_answered_at_the_vendors_own_path(name: str) -> None:
    with start_simulator(personality=name) as simulator:
        for model in simulator.config.models or load_personalities()[name].models[:1]:
            if "embedding" not in model:
                answer = ask(simulator, model)
                assert answer.status_code == 200, answer.text
                assert answer.json()["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize("name", NAMES)
def test_error_shape_and_header_family_exist(name: str) -> None:
    person = load_personalities()[name]
    assert person.errors in ERROR_SHAPES
    assert person.headers in HEADER_FAMILIES


@pytest.mark.parametrize("shape", sorted(ERROR_SHAPES))
def test_every_shape_tells_its_message_somewhere(shape: str) -> None:
    for status in (400, 401, 403, 404, 429, 500, 503, 529):
        body = error_body(shape, Problem(status, "kind", "What happened.", "code", None, 22.0))
        assert body


@pytest.mark.parametrize(("name", "model", "key", "value", "status"), [
    ("groq", "llama-3.3-70b-versatile", "n", 2, 400), ("groq", "llama-3.3-70b-versatile", "logprobs", True, 400),
    ("groq", "llama-3.3-70b-versatile", "response_format", FORMAT, 400),
    ("groq", "openai/gpt-oss-20b", "response_format", FORMAT, 200), ("groq", "openai/gpt-oss-20b", "n", 1, 200),
    ("xai", "grok-4.3", "stop", ["x"], 400), ("xai", "grok-4.3", "presence_penalty", 1, 400),
    ("xai", "grok-4.20-non-reasoning", "stop", ["x"], 200), ("anthropic", "claude-sonnet-4-5", "n", 2, 400),
    ("anthropic", "claude-opus-4-7", "temperature", 0.5, 400), ("anthropic", "claude-sonnet-4-5", "seed", 1, 200),
    ("transformers", "m", "top_k", 5, 422), ("vllm", "m", "top_k", 5, 200), ("openai", "gpt-4o-mini", "top_k", 5, 400),
    ("openai", "o4-mini", "stop", ["x"], 400), ("openai", "o4-mini", "max_tokens", 5, 400),
    ("mistral", "mistral-small-latest", "seed", 1, 422), ("mistral", "mistral-small-latest", "random_seed", 1, 200),
    ("deepseek", "deepseek-chat", "response_format", FORMAT, 422), ("modelux", "@my-slug", "mlx:tags", {"a": "b"}, 200),
    ("mx4", "mx4-atlas-core", "n", 2, 200),
])  # fmt: skip
def test_body_keys_are_taken_or_refused(name: str, model: str, key: str, value: Any, status: int) -> None:
    with start_simulator(personality=name) as simulator:
        answer = ask(simulator, model, **{key: value})
    assert answer.status_code == status, answer.text
    if status != 200 and key != "response_format":
        assert key in answer.text


@pytest.mark.parametrize("name", ["mx4", "megallm", "modelux", "ollama", "transformers", "tgi", "openrouter", "deaf"])
def test_an_ignored_n_gives_one_choice_with_200(name: str) -> None:
    with start_simulator(personality=name) as simulator:
        assert len(ask(simulator, n=3).json()["choices"]) == 1


def test_an_ignored_schema_gives_prose_with_200() -> None:
    with start_simulator(personality="deaf") as simulator:
        content = ask(simulator, response_format=FORMAT).json()["choices"][0]["message"]["content"]
    assert not content.startswith("{")


@pytest.mark.parametrize("parts", [False, True])
def test_a_schema_in_the_prompt_is_obeyed_where_formats_are_ignored(parts: bool) -> None:
    text = 'Be brief. It must be valid against this JSON Schema:\n{"type":"object","required":["a"]}\n'
    content = [{"type": "text", "text": text}] if parts else text
    with start_simulator(personality="mx4") as simulator:
        answer = ask(simulator, messages=[{"role": "system", "content": content}, {"role": "user", "content": "Go."}])
    assert "a" in answer.json()["choices"][0]["message"]["content"]
    assert answer.json()["choices"][0]["message"]["content"].startswith("{")


def test_features_can_be_overridden_one_by_one() -> None:
    with start_simulator(personality="groq", features=(("n", "native"),)) as simulator:
        assert ask(simulator, n=1).status_code == 200
        simulator.reconfigure(personality="mx4")
        assert len(ask(simulator, n=3).json()["choices"]) == 3


def test_vllm_refuses_several_greedy_samples() -> None:
    with start_simulator(personality="vllm") as simulator:
        assert ask(simulator, n=2, temperature=0).status_code == 400
        assert ask(simulator, n=2).status_code == 200


def test_mx4_puts_the_type_into_code_and_resets_as_unix_time() -> None:
    with start_simulator(personality="mx4", limits=(Limit("requests", 100), Limit("tokens", 10_000))) as simulator:
        first = ask(simulator, max_tokens=50)
        refused = ask(simulator, max_tokens=20_000)
    assert int(first.headers["x-ratelimit-reset-requests"]) > 1_500_000_000
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], "type" in error) == (429, "rate_limit_error", False)


def test_gemini_tells_the_wait_in_the_body() -> None:
    with start_simulator(personality="gemini", limits=(Limit("requests", 1),)) as simulator:
        refused = [ask(simulator) for _ in range(2)][1]
    error = refused.json()["error"]
    assert error["status"] == "RESOURCE_EXHAUSTED"
    assert [detail.get("retryDelay") for detail in error["details"]][1].endswith("s")
    assert "retry-after" not in refused.headers


def test_modelux_answers_from_its_cache_unless_told_to_skip_it() -> None:
    with start_simulator(personality="modelux") as simulator:
        def content(**body: Any) -> tuple[str, str]:
            answer = ask(simulator, **body)
            return answer.json()["choices"][0]["message"]["content"], answer.headers["x-modelux-cache"]

        first, second = content(seed=1), content(seed=2)
        skipped = content(seed=2, **{"mlx:cache": {"skip": True}})
    assert (first[0] == second[0], first[1], second[1], skipped[1]) == (True, "MISS", "HIT", "MISS")


def test_modelux_captures_cost_and_configuration_in_headers() -> None:
    with start_simulator(personality="modelux") as simulator:
        headers = ask(simulator).headers
    assert float(headers["x-modelux-cost-usd"]) > 0
    assert headers["x-modelux-config-version"] == "7"


def test_xai_keeps_reasoning_outside_of_completion_tokens() -> None:
    with start_simulator(personality="xai") as simulator:
        usage = ask(simulator, "grok-4.3").json()["usage"]
    reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] + reasoning
