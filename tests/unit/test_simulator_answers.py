"""What the simulated model says: repeatable, counted, shaped as OpenAI's."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from batch.simulator import Simulator, start_simulator

ASK: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say something."}]}
SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}


@pytest.fixture
def simulator() -> Any:
    with start_simulator() as running:
        yield running


def client(simulator: Simulator, key: str = "sk-test-1234") -> openai.OpenAI:
    return openai.OpenAI(base_url=simulator.base_url, api_key=key, max_retries=0)


def texts(answer: Any) -> list[str | None]:
    return [choice.message.content for choice in answer.choices]


def test_answers_repeat_by_messages_seed_and_index(simulator: Simulator) -> None:
    ask = client(simulator).chat.completions.create
    first, again, other = ask(**ASK, seed=7, n=2), ask(**ASK, seed=7, n=2), ask(**ASK, seed=8, n=2)
    assert texts(first) == texts(again) != texts(other)
    assert len(set(texts(first))) == 2


def test_native_n_gives_choice_i_the_seed_plus_i_where_the_engine_does() -> None:
    with start_simulator(personality="vllm") as simulator:
        ask = client(simulator).chat.completions.create
        together = texts(ask(**ASK, seed=5, n=3))
        apart = [texts(ask(**ASK, seed=5 + i))[0] for i in range(3)]
    assert together == apart


def test_an_engine_that_copies_the_seed_gives_equal_choices() -> None:
    with start_simulator(personality="sglang", features=(("seed", "native"),)) as simulator:
        together = texts(client(simulator).chat.completions.create(**ASK, seed=5, n=3))
    assert len(set(together)) == 1


def test_usage_counts_the_prompt_once_and_every_choice(simulator: Simulator) -> None:
    ask = client(simulator).chat.completions.create
    one, three = ask(**ASK).usage, ask(**ASK, n=3).usage
    assert one is not None and three is not None
    assert three.prompt_tokens == one.prompt_tokens
    assert three.completion_tokens == 3 * one.completion_tokens == 120


def test_max_tokens_cuts_and_says_length(simulator: Simulator) -> None:
    answer = client(simulator).chat.completions.create(**ASK, max_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 5


def test_a_stop_string_ends_the_answer_before_itself(simulator: Simulator) -> None:
    ask = client(simulator).chat.completions.create
    words = str(texts(ask(**ASK))[0]).split()
    assert texts(ask(**ASK, stop=[words[3]])) == [" ".join(words[:3]) + " "]


@pytest.mark.parametrize("streaming", [False, True])
def test_json_answers_satisfy_the_schema(simulator: Simulator, streaming: bool) -> None:
    answer = client(simulator).chat.completions.create(**ASK, response_format=FORMAT, stream=streaming)
    text = "".join(c.choices[0].delta.content or "" for c in answer) if streaming else texts(answer)[0]
    assert str(text).startswith('{"a":')


def test_a_stream_carries_what_the_whole_answer_would(simulator: Simulator) -> None:
    ask = client(simulator).chat.completions.create
    whole = ask(**ASK, n=2, seed=3)
    parts, usage = ["", ""], None
    for chunk in ask(**ASK, n=2, seed=3, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
    assert parts == texts(whole)
    assert usage == whole.usage


def test_a_forced_tool_is_called_with_valid_arguments(simulator: Simulator) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
    answer = client(simulator).chat.completions.create(**ASK, tools=[tool], tool_choice="required")
    call = answer.choices[0].message.tool_calls[0]
    assert (call.function.name, answer.choices[0].finish_reason) == ("look", "tool_calls")
    assert call.function.arguments.startswith('{"a":')


def test_embeddings_responses_and_models_answer_the_sdk(simulator: Simulator) -> None:
    api = client(simulator)
    vectors = api.embeddings.create(model="text-embedding-3-small", input=["a", "b", "a"]).data
    assert vectors[0].embedding == vectors[2].embedding != vectors[1].embedding
    assert api.responses.create(model="gpt-4o-mini", input="hello", instructions="short").output_text
    assert "gpt-4o-mini" in [model.id for model in api.models.list().data]


def test_the_log_tells_what_was_sent_but_not_what_was_said(simulator: Simulator) -> None:
    client(simulator).chat.completions.create(**ASK, seed=11, n=2, extra_headers={"X-Line": "42"})
    (record,) = simulator.requests
    assert (record.model, record.seed, record.n, record.status, record.key) == ("gpt-4o-mini", 11, 2, 200, "1234")
    assert record.headers["x-line"] == "42"
    assert record.completion_tokens == 80
    assert "Say something" not in str(record)


def test_the_log_file_holds_whole_lines_as_soon_as_answers_are_out(tmp_path: Any) -> None:
    path = tmp_path / "log.jsonl"
    with start_simulator(log_path=path) as simulator:
        client(simulator).chat.completions.create(**ASK)
        assert path.read_text().count("\n") == 1
