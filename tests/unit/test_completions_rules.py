"""What a request body must look like."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.completions.rules import CHAT, EMBEDDINGS, RESPONSES, RULES, Problem, check_body, misspelt_keys
from tests.harness.answers import PROMPT, SCHEMAS

PLAIN = {"model": "m", "messages": PROMPT}


def problems_of(**keys: Any) -> list[tuple[str, str | None]]:
    return [(found.code, found.param) for found in check_body({**PLAIN, **keys}, CHAT, SCHEMAS)]


FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA_FORMAT = {"type": "json_schema", "json_schema": {"name": "a-b_1", "schema": {"type": "object"}, "strict": None}}

RIGHT: dict[str, list[Any]] = {
    "audio": [{"voice": "alloy", "format": "mp3"}, None],
    "frequency_penalty": [-2, 2.0, None],
    "function_call": ["auto", {"name": "f"}],
    "functions": [[{"name": "f"}]],
    "logit_bias": [{"50256": -100}, {}, None],
    "logprobs": [True, False, None],
    "max_completion_tokens": [1, None],
    "max_tokens": [100_000, None],
    "messages": [
        [{"role": role, "content": "x"} for role in ("developer", "system", "user", "assistant")],
        [{"role": "assistant", "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
         {"role": "tool", "tool_call_id": "c", "content": "1"}],
        [{"role": "function", "name": "f", "content": None}],
        [{"role": "assistant", "content": None, "refusal": "no"}],
        [{"role": "user", "content": [
            {"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
            {"type": "file", "file": {"file_id": "file-1"}},
            {"type": "video_url", "video_url": {"url": "https://example.org"}}]}],
    ],
    "metadata": [{"a": "b"}, {}, None],
    "modalities": [["text", "audio"], None],
    "model": ["m", "Qwen/Qwen3-8B", "@slug"],
    "moderation": [{"model": "omni"}],
    "n": [1, 128, None],
    "parallel_tool_calls": [True, False],
    "prediction": [{"type": "content", "content": "x"}],
    "presence_penalty": [0, None],
    "prompt_cache_key": ["k"],
    "prompt_cache_options": [{"ttl": "30m", "mode": "implicit"}],
    "prompt_cache_retention": ["24h"],
    "reasoning_effort": ["none", "xhigh", None],
    "response_format": [{"type": "text"}, {"type": "json_object"}, SCHEMA_FORMAT],
    "safety_identifier": ["x" * 64],
    "seed": [-(2**63), 2**63 - 1, None],
    "service_tier": ["flex", None],
    "stop": ["x", ["a", "b", "c", "d"], None],
    "store": [False, None],
    "stream": [False, None],
    "stream_options": [{"include_usage": True}],
    "temperature": [0, 2, 0.5, None],
    "tool_choice": ["none", "auto"],
    "tools": [[FUNCTION], [{"type": "custom", "custom": {
        "name": "c", "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "x"}}}}],
        [{"type": "live_search"}]],
    "top_logprobs": [None],
    "top_p": [0, 1],
    "user": ["u"],
    "verbosity": ["low"],
    "web_search_options": [{"search_context_size": "low", "user_location": {
        "type": "approximate", "approximate": {"city": "Cairo"}}}],
}  # fmt: skip

WRONG: dict[str, list[tuple[Any, str]]] = {
    "audio": [({"voice": "alloy"}, "audio.format"), ("x", "audio")],
    "frequency_penalty": [(2.1, "frequency_penalty"), ("1", "frequency_penalty"), (True, "frequency_penalty")],
    "function_call": [("required", "function_call"), ({}, "function_call.name")],
    "functions": [([], "functions"), ([{}], "functions[0].name")],
    "logit_bias": [({"1": 101}, "logit_bias.1"), ([], "logit_bias")],
    "logprobs": [(1, "logprobs")],
    "max_completion_tokens": [(0, "max_completion_tokens"), (1.5, "max_completion_tokens")],
    "max_tokens": [("9", "max_tokens")],
    "messages": [
        ([], "messages"),
        ("hi", "messages"),
        (["hi"], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "bot", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"text": "x"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x"}}]}],
         "messages[0].content[0].image_url.url"),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
        ([{"role": "assistant"}], "messages[0].content"),
        ([{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]}],
         "messages[0].tool_calls[0].function.arguments"),
    ],
    "metadata": [({"tags": ["x"]}, "metadata.tags"), ({str(i): "" for i in range(17)}, "metadata")],
    "modalities": [(["video"], "modalities[0]")],
    "model": [("", "model"), (5, "model"), (None, "model")],
    "moderation": [({}, "moderation.model")],
    "n": [(0, "n"), (129, "n"), (True, "n"), (1.0, "n")],
    "parallel_tool_calls": [("yes", "parallel_tool_calls")],
    "prediction": [({"type": "x", "content": "y"}, "prediction.type")],
    "presence_penalty": [(-3, "presence_penalty")],
    "prompt_cache_key": [(1, "prompt_cache_key")],
    "prompt_cache_options": [({"mode": "x"}, "prompt_cache_options.mode")],
    "prompt_cache_retention": [("1h", "prompt_cache_retention")],
    "reasoning_effort": [("huge", "reasoning_effort")],
    "response_format": [
        ("json", "response_format"),
        ({}, "response_format.type"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}},
         "response_format.json_schema.schema"),
    ],
    "safety_identifier": [("x" * 65, "safety_identifier")],
    "seed": [(2**63, "seed"), (1.5, "seed"), ("1", "seed")],
    "service_tier": [("turbo", "service_tier")],
    "stop": [([], "stop"), (["a"] * 5, "stop"), ([1], "stop[0]"), (5, "stop")],
    "store": [("x", "store")],
    "stream": [("x", "stream")],
    "stream_options": [({"include_usage": 1}, "stream_options.include_usage")],
    "temperature": [(2.01, "temperature"), (-0.1, "temperature"), ("0", "temperature")],
    "tool_choice": [("required", "tool_choice"), ("any", "tool_choice"),
                    ({"type": "function", "function": {"name": "g"}}, "tool_choice")],
    "tools": [({}, "tools"), ([{}], "tools[0].type"), ([{"type": "function"}], "tools[0].function"),
              ([{"type": "function", "function": {"name": "a b"}}], "tools[0].function.name"),
              ([{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "x"}}}],
               "tools[0].function.parameters")],
    "top_logprobs": [(5, "top_logprobs"), (21, "top_logprobs")],
    "top_p": [(1.1, "top_p")],
    "user": [(5, "user")],
    "verbosity": [("loud", "verbosity")],
    "web_search_options": [({"search_context_size": "x"}, "web_search_options.search_context_size")],
}  # fmt: skip


def test_the_tables_below_cover_every_parameter() -> None:
    assert set(RIGHT) == set(WRONG) == set(RULES)
    assert len(RULES) == 37


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in RIGHT.items() for value in values])
def test_right_values_pass(key: str, value: Any) -> None:
    assert problems_of(**{key: value}) == []


@pytest.mark.parametrize(
    ("key", "value", "place"), [(key, value, place) for key, rows in WRONG.items() for value, place in rows]
)
def test_wrong_values_are_reported_at_their_place(key: str, value: Any, place: str) -> None:
    assert f"body.{place}" in [param for _, param in problems_of(**{key: value})]


def test_the_texts_that_clients_know_are_exact() -> None:
    assert check_body({"messages": PROMPT}, CHAT) == [
        Problem("invalid_request", "Model parameter is required.", "body.model")
    ]
    assert check_body({"model": "m"}, CHAT) == [
        Problem("invalid_request", "Messages parameter is required.", "body.messages")
    ]
    assert check_body({**PLAIN, "stream": True}, CHAT) == [
        Problem(
            "streaming_unsupported", "Chat Completions: Streaming is not supported in the Batch API.", "body.stream"
        )
    ]
    assert check_body({**PLAIN, "metadata": {"tags": []}}, CHAT)[0].message == (
        "Invalid type for 'metadata.tags': expected a string, but got an array instead."
    )


def test_every_problem_of_a_body_is_reported_and_never_more_than_twenty() -> None:
    assert len(problems_of(n=0, temperature=9, seed="x")) == 3
    assert len(check_body({**PLAIN, "messages": [5] * 100}, CHAT)) == 20


def test_unknown_keys_pass_and_camel_case_is_pointed_out() -> None:
    assert problems_of(top_k=5, **{"mlx:tags": {}}, presencePenalty=1) == []
    assert misspelt_keys({**PLAIN, "presencePenalty": 1, "maxTokens": 5, "myKey": 1}) == [
        ("presencePenalty", "presence_penalty"),
        ("maxTokens", "max_tokens"),
    ]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"input": "x"}, "body.model"),
        ({"model": "m"}, "body.input"),
        ({"model": "m", "input": []}, "body.input"),
        ({"model": "m", "input": [1, "x"]}, "body.input[0]"),
        ({"model": "m", "input": "x", "encoding_format": "hex"}, "body.encoding_format"),
    ],
)
def test_embeddings_are_checked_lightly(body: dict[str, Any], place: str) -> None:
    assert [found.param for found in check_body(body, EMBEDDINGS)] == [place]
    for given_input in ("x", ["x", "y"], [1, 2], [[1], [2, 3]]):
        assert check_body({"model": "m", "input": given_input}, EMBEDDINGS) == []


def test_responses_with_n_are_refused_with_the_mend() -> None:
    found = check_body({"model": "m", "input": "x", "n": 2}, RESPONSES)
    assert [problem.param for problem in found] == ["body.n"]
    assert "/v1/chat/completions" in found[0].message
    assert check_body({"model": "m", "input": "x", "stream": True}, RESPONSES)[0].code == "streaming_unsupported"
    assert check_body({"model": "m", "input": [{"role": "user", "content": "x"}]}, RESPONSES) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
SHAPED = st.fixed_dictionaries({}, optional={
    "type": st.sampled_from(["text", "function", "custom", "json_schema", "allowed_tools"]) | JSON,
    "role": st.sampled_from(["user", "assistant", "tool"]) | JSON,
    "content": JSON, "function": JSON, "custom": JSON, "json_schema": JSON, "name": JSON, "tool_calls": JSON,
})  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(sorted(RULES)) | st.text(max_size=5), JSON | SHAPED | st.lists(SHAPED, max_size=3)),
    st.sampled_from([CHAT, EMBEDDINGS, RESPONSES]),
)
def test_no_body_makes_the_rules_fail(body: dict[str, Any], endpoint: str) -> None:
    """Any JSON object gets a list of problems, never an exception."""
    for found in check_body(body, endpoint, SCHEMAS):
        assert found.code
        assert found.param is not None
        assert found.param.startswith("body.")
