"""What is sent for a request on a given card."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.completions.answering import Answering
from batch.completions.cards import Card, Support
from batch.completions.plan import PlanOptions, plan_line
from batch.domain.errors import InvalidRequest
from tests.harness.answers import PROMPT, SCHEMAS, complete, play

N_NATIVE = {"n": Support.NATIVE}


def body_of(**keys: Any) -> dict[str, Any]:
    return {"model": "m", "messages": PROMPT, **keys}


def first_calls(body: dict[str, Any], card: Card, **options: Any) -> list[dict[str, Any]]:
    plan = plan_line(body, card, PlanOptions(**options))
    line = Answering(body, orjson.dumps(body), plan, schemas=SCHEMAS)
    return [orjson.loads(call.body) for call in line.next_calls()]


def test_a_plain_request_is_sent_byte_for_byte_as_it_was_written() -> None:
    body = body_of(temperature=0.5, top_k=40)
    raw = b'{"messages": [{"role":"user", "content":"Name a number."}],\n"temperature":0.50,"top_k":40,"model":"m"}'
    line = Answering(body, raw, plan_line(body, Card("p", "m")), schemas=SCHEMAS)
    assert line.next_calls()[0].body is raw


def test_the_model_is_renamed_to_the_one_that_the_route_names() -> None:
    assert first_calls(body_of(), Card("p", "own/model"))[0]["model"] == "own/model"


@pytest.mark.parametrize(
    ("card", "n", "groups"),
    [
        (Card("p", "m"), 3, [1, 1, 1]),
        (Card("p", "m", support=N_NATIVE), 3, [3]),
        (Card("p", "m", support=N_NATIVE, n_max=8), 20, [8, 8, 4]),
        (Card("p", "m", support=N_NATIVE, n_max=1), 2, [1, 1]),
    ],
)
def test_n_is_native_chunked_or_fanned_out_as_the_card_says(card: Card, n: int, groups: list[int]) -> None:
    assert [sent.get("n", 1) for sent in first_calls(body_of(n=n), card)] == groups


def test_n_of_one_is_not_sent_where_n_is_not_native() -> None:
    card = Card("p", "m", support={"n": Support.REJECTED})
    assert "n" not in first_calls(body_of(n=1), card)[0]


def test_a_seeded_fan_out_gives_choice_i_the_seed_plus_i() -> None:
    sent = first_calls(body_of(n=3, seed=41), Card("p", "m"))
    assert [call["seed"] for call in sent] == [41, 42, 43]


def test_seeds_wrap_at_two_to_the_63() -> None:
    sent = first_calls(body_of(n=2, seed=2**63 - 1), Card("p", "m"))
    assert [call["seed"] for call in sent] == [2**63 - 1, 0]


def test_native_n_with_one_seed_for_all_is_fanned_out_when_seeded() -> None:
    assert len(first_calls(body_of(n=2, seed=1), Card("p", "m", support=N_NATIVE))) == 2


def test_native_n_with_a_seed_per_choice_stays_one_call() -> None:
    sent = first_calls(body_of(n=2, seed=1), Card("p", "m", support=N_NATIVE, seed_per_choice=True))
    assert [(call["n"], call["seed"]) for call in sent] == [(2, 1)]


def test_temperature_zero_makes_n_real_calls_where_native_n_refuses_it() -> None:
    card = Card("p", "m", support=N_NATIVE, n_with_temperature_0=Support.REJECTED)
    assert len(first_calls(body_of(n=3, temperature=0), card)) == 3


def test_the_seed_goes_under_the_providers_own_name() -> None:
    sent = first_calls(body_of(seed=5), Card("p", "m", seed_field="random_seed"))[0]
    assert sent["random_seed"] == 5
    assert "seed" not in sent


def test_a_refused_seed_is_left_out_and_the_line_says_so() -> None:
    played = play(body_of(seed=5), Card("p", "m", support={"seed": Support.REJECTED}), [complete("1")])
    assert "seed" not in played.sent[0]
    assert played.end.note["seed"] == "not_sent"
    assert "seed:not_sent" in played.end.facts


def test_a_seed_that_the_provider_ignores_is_sent_and_the_line_says_so() -> None:
    played = play(body_of(seed=5), Card("p", "m", support={"seed": Support.IGNORED}), [complete("1")])
    assert played.sent[0]["seed"] == 5
    assert played.end.note["seed"] == "ignored"


@pytest.mark.parametrize(
    ("given_key", "wanted"), [("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")]
)
def test_the_token_limit_is_renamed_to_what_the_provider_knows(given_key: str, wanted: str) -> None:
    sent = first_calls(body_of(**{given_key: 9}), Card("p", "m", max_tokens_field=wanted))[0]
    assert sent[wanted] == 9
    assert given_key not in sent


def test_a_refused_key_is_a_validation_error_that_names_it_and_the_provider() -> None:
    card = Card("xai", "grok", support={"presence_penalty": Support.REJECTED})
    with pytest.raises(InvalidRequest, match="xai does not take 'presence_penalty' for grok") as caught:
        plan_line(body_of(presence_penalty=1), card)
    assert caught.value.param == "body.presence_penalty"


def test_a_refused_key_is_dropped_only_when_asked_and_then_said() -> None:
    card = Card("p", "m", support={"presence_penalty": Support.REJECTED})
    played = play(body_of(presence_penalty=1), card, [complete("1")], on_unsupported="drop")
    assert "presence_penalty" not in played.sent[0]
    assert played.end.note["dropped"] == ["presence_penalty"]
    assert "dropped:presence_penalty" in played.end.facts


def test_a_refused_key_at_its_default_value_is_left_out_in_silence() -> None:
    card = Card("p", "m", support={"presence_penalty": Support.REJECTED})
    played = play(body_of(presence_penalty=0), card, [complete("1")])
    assert "presence_penalty" not in played.sent[0]
    assert "dropped" not in played.end.note


def test_an_ignored_key_is_sent_and_said() -> None:
    card = Card("p", "m", support={"logprobs": Support.IGNORED})
    played = play(body_of(logprobs=True), card, [complete("1")])
    assert played.sent[0]["logprobs"] is True
    assert played.end.note["ignored"] == ["logprobs"]


def test_keys_that_openai_does_not_define_are_sent_as_given() -> None:
    sent = first_calls(body_of(top_k=3, **{"mlx:tags": {"a": "b"}}), Card("p", "m", default=Support.REJECTED))[0]
    assert (sent["top_k"], sent["mlx:tags"]) == (3, {"a": "b"})


def test_a_provider_that_answers_unknown_keys_with_422_gets_none() -> None:
    card = Card("p", "m", unknown_keys="drop")
    with pytest.raises(InvalidRequest, match="top_k"):
        plan_line(body_of(top_k=3), card)
    assert "top_k" not in first_calls(body_of(top_k=3), card, on_unsupported="drop")[0]


def test_images_are_refused_only_where_the_provider_is_known_to_refuse_them() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    body = {"model": "m", "messages": [{"role": "user", "content": [image]}]}
    assert plan_line(body, Card("p", "m")).verbatim
    with pytest.raises(InvalidRequest, match="vision content"):
        plan_line(body, Card("p", "m", support={"vision": Support.REJECTED}))


def test_a_temperature_over_the_providers_maximum_is_refused_or_lowered_on_request() -> None:
    card = Card("p", "m", temperature_max=1.0)
    with pytest.raises(InvalidRequest, match="at most 1"):
        plan_line(body_of(temperature=1.5), card)
    assert first_calls(body_of(temperature=1.5), card, on_unsupported="drop")[0]["temperature"] == 1.0


def test_fan_out_bypasses_the_gateways_cache_and_a_single_call_does_not() -> None:
    card = Card("p", "m", cache_bypass={"mlx:cache": {"skip": True}})
    body = body_of(n=2, **{"mlx:cache": {"ttl": 5}})
    assert first_calls(body, card)[0]["mlx:cache"] == {"ttl": 5, "skip": True}
    assert first_calls({**body, "n": 1}, card)[0]["mlx:cache"] == {"ttl": 5}
    played = play(body, card, [complete("1"), complete("2")])
    assert played.end.note["overridden"] == ["mlx:cache"]


def test_strips_reach_into_tools_and_messages_and_leave_the_rest() -> None:
    card = Card("p", "m", strip=("tools.function.strict", "messages.name"))
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object"}}}
    body = {"model": "m", "messages": [{**PROMPT[0], "name": "bob"}], "tools": [tool]}
    sent = first_calls(body, card)[0]
    assert sent["tools"][0]["function"] == {"name": "f", "parameters": {"type": "object"}}
    assert sent["messages"] == PROMPT
    assert body["messages"][0]["name"] == "bob", "the caller's body is not changed"


def test_injected_keys_never_replace_the_callers_own() -> None:
    card = Card("p", "m", inject={"context_length_exceeded_behavior": "error"})
    assert first_calls(body_of(), card)[0]["context_length_exceeded_behavior"] == "error"
    own = first_calls(body_of(context_length_exceeded_behavior="truncate"), card)[0]
    assert own["context_length_exceeded_behavior"] == "truncate"


def test_a_required_tool_choice_is_said_in_the_providers_word() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    card = Card("p", "m", tool_choice_required="any")
    assert first_calls(body_of(tools=[tool], tool_choice="required"), card)[0]["tool_choice"] == "any"


def test_a_streaming_card_asks_for_events_with_usage() -> None:
    sent = first_calls(body_of(stream=False), Card("p", "m", stream=True))[0]
    assert (sent["stream"], sent["stream_options"]) == (True, {"include_usage": True})


def test_a_long_prompt_warms_the_cache_with_one_call_before_the_others() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 7_000}], "n": 4}
    line = Answering(body, orjson.dumps(body), plan_line(body, Card("p", "m")), schemas=SCHEMAS)
    first = line.next_calls()
    assert len(first) == 1
    line.accept(first[0], complete("1"))
    assert [call.indices for call in line.next_calls()] == [(1,), (2,), (3,)]


SUPPORTS = st.sampled_from(list(Support))
CARDS = st.builds(
    Card,
    provider=st.just("p"),
    model=st.just("m"),
    support=st.dictionaries(st.sampled_from(["n", "seed", "stop", "top_p", "user", "json_schema"]), SUPPORTS),
    n_max=st.integers(1, 8),
    seed_per_choice=st.booleans(),
    seed_field=st.sampled_from(["seed", "random_seed"]),
    n_with_temperature_0=SUPPORTS,
)


@given(
    CARDS,
    st.integers(1, 20),
    st.none() | st.integers(0, 2**63 - 1),
    st.sampled_from([0, 0.7]),
)
def test_every_choice_is_asked_for_once_with_its_own_seed(
    card: Card, n: int, seed: int | None, temperature: float
) -> None:
    """Whatever the card: indices 0…n-1 once each, calls within n_max, and the seed of a call is that of its
    first choice."""
    body = body_of(n=n, temperature=temperature, **({} if seed is None else {"seed": seed}))
    plan = plan_line(body, card)
    calls = Answering(body, orjson.dumps(body), plan, schemas=SCHEMAS).next_calls()
    assert [index for call in calls for index in call.indices] == list(range(n))
    assert sum(call.share for call in calls) == pytest.approx(1)
    for call in calls:
        sent = orjson.loads(call.body)
        assert sent.get("n", 1) == len(call.indices) <= max(card.n_max, 1)
        expected = None if seed is None or plan.seed_field is None else (seed + call.indices[0]) % 2**63
        assert sent.get(card.seed_field) == expected
