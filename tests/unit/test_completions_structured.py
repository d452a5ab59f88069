"""Structured output: the ladder, extraction, re-asks, strict conversion."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.completions.answers import Answer, LineFailure
from batch.completions.cards import Card, Support
from batch.completions.extract import NotJson, find_json
from batch.completions.strict import to_strict, undo
from batch.domain.errors import InvalidRequest
from batch.domain.outcome import Success, Usage
from tests.harness.answers import PROMPT, SCHEMAS, complete, play

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
NATIVE = Card("p", "m", support={"json_schema": Support.NATIVE, "json_object": Support.NATIVE}, schema_mode="strict")
PROMPT_ONLY = Card("p", "m")


def body_of(schema: Any = SCHEMA, *, strict: bool | None = None, **keys: Any) -> dict[str, Any]:
    wanted = {"name": "thing", "schema": schema} | ({} if strict is None else {"strict": strict})
    return {"model": "m", "messages": PROMPT, "response_format": {"type": "json_schema", "json_schema": wanted}, **keys}


def test_valid_content_is_not_touched() -> None:
    text = '{ "a" :\t1.0e0 }'
    played = play(body_of({"type": "object", "properties": {"a": {"type": "number"}}}), NATIVE, [complete(text)])
    assert played.contents == [text]
    assert "raw" not in played.end.note


def test_the_strict_rung_sends_the_closed_schema_and_the_caller_s_own_judges() -> None:
    played = play(body_of(), NATIVE, [complete('{"a":1}')])
    sent = played.sent[0]["response_format"]["json_schema"]
    assert sent["strict"] is True
    assert sent["schema"] == {**SCHEMA, "additionalProperties": False}
    assert played.end.note["schema_mode"] == "strict"


def test_a_strict_schema_that_conforms_is_sent_byte_for_byte() -> None:
    closed = {**SCHEMA, "additionalProperties": False, "$defs": {"x": {"type": "string", "title": "X"}}}
    played = play(body_of(closed, strict=True), NATIVE, [complete('{"a":1}')])
    assert played.calls[0].body == orjson.dumps(body_of(closed, strict=True))


def test_prose_from_a_provider_that_ignores_the_format_steps_down_without_a_retry() -> None:
    played = play(body_of(), NATIVE, [complete("Sure: one."), complete('{"a":1}')], schema_retries=0)
    assert [sent.get("response_format", {}).get("type") for sent in played.sent] == ["json_schema", "json_object"]
    assert "JSON Schema" in played.sent[1]["messages"][0]["content"]
    assert played.line is not None
    assert played.line.learned == {"json_schema": "ignored"}
    assert {"schema:stepped_down", "emulated:json_schema"} <= set(played.end.facts)
    assert "schema:reasked" not in played.end.facts


def test_a_400_on_response_format_steps_down_every_rung_to_the_prompt() -> None:
    def upstream(sent: dict[str, Any]) -> Success | str:
        return "response_format" if "response_format" in sent else complete('{"a":1}')

    played = play(body_of(), NATIVE, upstream)
    formats = [sent.get("response_format", {}) for sent in played.sent]
    shown = [wanted.get("json_schema", {}).get("strict", wanted.get("type")) for wanted in formats]
    assert shown == [True, False, "json_object", None]


def test_a_rejected_answer_is_asked_again_with_its_errors_and_only_that_choice() -> None:
    bypass = {"mlx:cache": {"skip": True}}
    card = Card("p", "m", support={"n": Support.NATIVE}, seed_per_choice=True, cache_bypass=bypass)
    answers = [complete('{"a":1}', '{"a":"x"}', '{"a":3}'), complete('{"a":2}')]
    played = play(body_of(n=3, seed=5, max_tokens=40), card, answers)
    assert [orjson.loads(text or "")["a"] for text in played.contents] == [1, 2, 3]
    asked = played.sent[1]
    assert asked["messages"][-2] == {"role": "assistant", "content": '{"a":"x"}'}
    assert '/a: "x" is not of type "integer"' in asked["messages"][-1]["content"]
    assert (asked["seed"], asked["max_tokens"], asked["mlx:cache"]) == (5 + 1_000_000 + 1, 40, {"skip": True})
    assert {"schema:reasked", "schema:mended"} <= set(played.end.facts)
    assert isinstance(played.end, Answer)
    assert played.end.billed.output_tokens == 20


def test_a_line_that_is_never_valid_fails_with_all_its_raw_answers() -> None:
    failed = play(body_of(), PROMPT_ONLY, [complete(f'{{"a":"{i}"}}') for i in range(3)]).end
    assert isinstance(failed, LineFailure)
    assert failed.code == "json_schema_invalid"
    assert [entry["message"]["content"] for entry in failed.note["rejected"]] == ['{"a":"0"}', '{"a":"1"}', '{"a":"2"}']
    assert failed.note["rejected"][0]["errors"] == ['/a: "0" is not of type "integer"']
    assert failed.billed.input_tokens == 30


def test_json_taken_out_of_a_fence_becomes_the_content_and_the_raw_text_is_kept() -> None:
    raw = 'Here:\n```json\n{"a": 1}\n```\nDone.'
    played = play(body_of(), PROMPT_ONLY, [complete(raw)])
    assert played.contents == ['{"a": 1}']
    assert played.end.note["raw"] == {"0": raw}
    assert "schema:extracted" in played.end.facts


def test_nulls_that_the_strict_form_allowed_are_taken_out_again() -> None:
    schema = {**SCHEMA, "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
    played = play(body_of(schema), NATIVE, [complete('{"a":1,"b":null}')])
    assert played.sent[0]["response_format"]["json_schema"]["schema"]["required"] == ["a", "b"]
    assert played.contents == ['{"a":1}']
    huge = "9" * 40
    assert play(body_of(schema), NATIVE, [complete(f'{{"a":{huge},"b":null}}')]).contents == [f'{{"a":{huge}}}']


def test_a_root_that_is_no_object_is_wrapped_on_the_way_out_and_unwrapped_on_the_way_back() -> None:
    played = play(body_of({"type": "array", "items": {"type": "integer"}}), NATIVE, [complete('{"value":[1,2]}')])
    assert played.sent[0]["response_format"]["json_schema"]["schema"]["type"] == "object"
    assert played.contents == ["[1,2]"]


def test_an_open_object_is_never_closed_behind_the_callers_back() -> None:
    schema = {"type": "object", "additionalProperties": {"type": "string"}}
    for strict in (None, False, True):
        body = body_of(schema, strict=strict)
        sent = play(body, NATIVE, [complete("{}")]).sent[0]["response_format"]["json_schema"]
        assert (sent["schema"], sent.get("strict") or False) == (schema, False)


def test_a_provider_without_a_strict_tier_gets_the_callers_own_format() -> None:
    card = Card("p", "m", schema_mode="schema")
    assert play(body_of(strict=True), card, [complete('{"a":1}')]).sent[0] == body_of(strict=True)


def test_truncated_json_is_never_mended_and_names_the_mend() -> None:
    failed = play(body_of(max_tokens=4), PROMPT_ONLY, [complete('{"a": 1', finish="length")]).end
    assert isinstance(failed, LineFailure)
    assert failed.code == "truncated"
    assert "grow_max_tokens" in failed.message


def test_prose_cut_off_by_a_token_limit_is_a_format_ignored_not_a_truncation() -> None:
    played = play(body_of(), NATIVE, [complete("Well, that depends on", finish="length"), complete('{"a":1}')])
    assert played.contents == ['{"a":1}']
    assert played.end.note["stepped_down"] is True


def test_a_token_limit_grows_once_only_where_the_batch_allows_it() -> None:
    answers = [complete('{"a": 1', finish="length"), complete('{"a": 1}')]
    played = play(body_of(max_tokens=4), PROMPT_ONLY, answers, grow_max_tokens=True)
    assert [sent["max_tokens"] for sent in played.sent] == [4, 8]
    twice = [complete('{"a": 1', finish="length")] * 2
    assert isinstance(play(body_of(max_tokens=4), PROMPT_ONLY, twice, grow_max_tokens=True).end, LineFailure)


def test_complete_json_at_the_token_limit_is_an_answer() -> None:
    assert play(body_of(), PROMPT_ONLY, [complete('{"a": 1}', finish="length")]).contents == ['{"a": 1}']


def test_a_forced_tool_answers_only_where_the_card_asks_and_the_line_has_no_tools() -> None:
    card = Card("p", "m", schema_mode="tool")
    call = {"id": "c", "type": "function", "function": {"name": "answer", "arguments": '{"a":1}'}}
    played = play(body_of(), card, [complete({"tool_calls": [call]}, finish="tool_calls")])
    assert played.sent[0]["tool_choice"] == {"type": "function", "function": {"name": "answer"}}
    assert played.contents == ['{"a":1}']
    assert "tool_calls" not in played.body["choices"][0]["message"]
    assert played.body["choices"][0]["finish_reason"] == "stop"
    own = {"type": "function", "function": {"name": "f"}}
    with_tools = play(body_of(tools=[own]), card, [complete('{"a":1}')])
    assert with_tools.sent[0]["tools"] == [own]
    assert "tool_choice" not in with_tools.sent[0]


def test_json_and_tools_are_not_combined_where_the_provider_refuses_the_pair() -> None:
    card = Card("p", "m", support=NATIVE.support, schema_mode="schema", json_with_tools=False)
    sent = play(body_of(tools=[{"type": "function", "function": {"name": "f"}}]), card, [complete('{"a":1}')]).sent[0]
    assert "response_format" not in sent


def test_a_called_tool_is_an_answer_beside_the_schema() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}
    tools = [{"type": "function", "function": {"name": "f"}}]
    played = play(body_of(tools=tools), PROMPT_ONLY, [complete({"tool_calls": [call]}, finish="tool_calls")])
    assert played.body["choices"][0]["message"]["tool_calls"] == [call]


def test_arguments_of_strict_tools_are_checked_and_asked_again_under_their_call_id() -> None:
    tools = [{"type": "function", "function": {"name": "f", "strict": True, "parameters": SCHEMA}}]
    bad = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":"x"}'}}
    good = {"id": "c2", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    body = {"model": "m", "messages": PROMPT, "tools": tools}
    played = play(body, PROMPT_ONLY, [complete({"tool_calls": [call]}, finish="tool_calls") for call in (bad, good)])
    assert played.sent[1]["messages"][-1]["tool_call_id"] == "c1"
    assert "integer" in played.sent[1]["messages"][-1]["content"]
    assert played.body["choices"][0]["message"]["tool_calls"] == [good]


def test_json_object_is_native_or_prompted_and_always_checked() -> None:
    body = {"model": "m", "messages": PROMPT, "response_format": {"type": "json_object"}}
    native = play(body, NATIVE, [complete("[1]"), complete('{"a":1}')])
    assert native.sent[0] == body
    assert native.contents == ['{"a":1}']
    prompted = play(body, PROMPT_ONLY, [complete('{"a":1}')])
    assert "response_format" not in prompted.sent[0]
    assert "JSON object" in prompted.sent[0]["messages"][0]["content"]


def test_the_instruction_joins_the_callers_own_system_message() -> None:
    messages = [{"role": "system", "content": "Be terse."}, *PROMPT]
    sent = play({**body_of(), "messages": messages}, PROMPT_ONLY, [complete('{"a":1}')]).sent[0]["messages"]
    assert len(sent) == 2
    assert sent[0]["content"].startswith("Be terse.\n\nAnswer with one JSON value only")


@pytest.mark.parametrize(
    ("text", "value", "whole"),
    [
        ('{"a": 1}', {"a": 1}, True),
        (' \n"x" ', "x", True),
        ("\ufeff[1]", [1], False),
        ('```json\n{"a": 1}\n```', {"a": 1}, False),
        ('```\r\n[1]\r\n```', [1], False),
        ('<think>{"a": 0} maybe</think>{"a": 1}', {"a": 1}, False),
        ('no opening tag {"a": 0}</think>\n{"a": 1}', {"a": 1}, False),
        ('You wrote {"a": 0}. I say {"a": {"b": [1]}} ok', {"a": {"b": [1]}}, False),
        ('```json\n{"a": 0}\n```\nbetter:\n```json\n{"a": 1}\n```', {"a": 1}, False),
    ],
)
def test_the_last_complete_json_value_is_found(text: str, value: Any, whole: bool) -> None:
    found = find_json(text)
    assert (found.value, found.whole) == (value, whole)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "prose",
        '{"a": 1',
        '{"a": 1, "a": 2}',
        "NaN",
        '{"a": Infinity}',
        "[" * 3_000,
        '{"a":' * 200 + "1" + "}" * 200,
        '"\\ud800"',
        'x {"a": "\\ud800"}',
        "1" * 5_000,
    ],
)
def test_what_is_not_strict_json_is_not_repaired(text: str) -> None:
    with pytest.raises(NotJson):
        find_json(text)


def test_a_hint_that_an_object_is_wanted_passes_over_footnotes() -> None:
    assert find_json('{"a": 1} see [1]', want_object=True).value == {"a": 1}


def test_a_bad_schema_stops_the_line_before_any_call() -> None:
    with pytest.raises(InvalidRequest):
        play(body_of({"type": "strin"}), PROMPT_ONLY, [])


@pytest.mark.parametrize("card", [PROMPT_ONLY, NATIVE])
def test_a_careless_provider_costs_at_most_half_a_call_more_a_choice(card: Card) -> None:
    """It ignores n, seed and response_format, and breaks 30 % of its first answers. What it taught about
    itself is kept from line to line, as the lane keeps it."""
    chance = random.Random(7)
    made, prompts, outputs = 0, 0, 0

    def upstream(sent: dict[str, Any]) -> Success:
        nonlocal made, prompts, outputs
        made, prompts, outputs = made + 1, prompts + 10, outputs + 5
        if "JSON Schema" not in str(sent["messages"]):
            return complete("I would say one.")
        is_first = not any(message["role"] == "assistant" for message in sent["messages"])
        broken = is_first and chance.random() < 0.3
        return complete(chance.choice(['{"a": "one"}', "One.", '{"a": 1']) if broken else '{"a": 1}')

    billed = Usage()
    for _ in range(300):
        played = play(body_of(n=3, seed=100), card, upstream)
        assert isinstance(played.end, Answer)
        billed += played.end.billed
        first_asks = [sent["seed"] for call, sent in zip(played.calls, played.sent, strict=True) if not call.reask]
        assert set(first_asks) == {100, 101, 102}
        assert played.line is not None
        learned = {name: Support(value) for name, value in played.line.learned.items()}
        card = replace(card, support={**card.support, **learned})
    assert made <= 1.5 * 900
    assert billed == Usage(prompts, 0, outputs)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.sampled_from(["", "Sure!\n", "```json\n"]))
def test_any_object_is_found_whole_in_what_surrounds_it(value: dict[str, Any], before: str) -> None:
    after = "\n```" if before.startswith("```") else "" if not before else "\nDone."
    assert find_json(before + orjson.dumps(value).decode() + after).value == value


@given(st.dictionaries(st.sampled_from("abc"), st.sampled_from(["string", "integer", "null"]), max_size=3), st.data())
def test_strict_answers_undone_are_valid_by_the_original_schema(types: dict[str, str], data: st.DataObject) -> None:
    """Any answer that the strict form allows is, once undone, allowed by the schema it was made from."""
    required = data.draw(st.lists(st.sampled_from(sorted(types)), unique=True)) if types else []
    schema = {"type": "object", "properties": {k: {"type": t} for k, t in types.items()}, "required": required}
    strict = to_strict(orjson.dumps(schema))
    assert strict is not None
    values = {"string": "s", "integer": 1, "null": None}
    answer = {
        name: values[kind] if name in required or data.draw(st.booleans()) else None for name, kind in types.items()
    }
    assert SCHEMAS.compile(orjson.loads(strict.source)).errors(answer, "") == []
    undone = undo(answer, schema, strict)
    assert SCHEMAS.compile(schema).errors(undone, "") == []


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {}, "patternProperties": {"a": {}}},
        {"oneOf": [{"type": "string"}, {"type": "null"}]},
        {"type": "array"},
        {"type": "object", "properties": {}, "additionalProperties": True},
        {"allOf": [{"type": "string"}, {"minLength": 2}]},
        True,
    ],
)
def test_what_the_strict_subset_cannot_say_is_left_as_it_is(schema: Any) -> None:
    assert to_strict(orjson.dumps(schema)) is None


def test_recursive_schemas_convert_and_their_nulls_come_out() -> None:
    node = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}}, "required": ["v"]}
    strict = to_strict(orjson.dumps(node))
    assert strict is not None
    answer = {"v": 1, "next": {"v": 2, "next": None}}
    assert undo(answer, node, strict) == {"v": 1, "next": {"v": 2}}
