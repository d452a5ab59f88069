"""One line against one provider: what answers lead to."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch.completions.answering import Answering
from batch.completions.answers import Answer, LineFailure
from batch.completions.cards import Card, Support
from batch.completions.plan import PlanOptions, plan_line
from batch.domain.outcome import Success, Usage
from tests.harness.answers import PROMPT, SCHEMAS, complete, play

CARD = Card("p", "m")
NATIVE = Card("p", "m", support={"n": Support.NATIVE})


def body_of(**keys: Any) -> dict[str, Any]:
    return {"model": "m", "messages": PROMPT, **keys}


def test_a_plain_answer_is_passed_on_byte_for_byte() -> None:
    answer = complete("hi", service_tier="default", x_vendor={"a": 1})
    played = play(body_of(), CARD, [answer])
    assert isinstance(played.end, Answer)
    assert played.end.body is answer.body
    assert played.end.note == {
        "provider": "p", "model": "m-1", "calls": 1, "latency_s": 0.5, "request_id": "req-1"
    }  # fmt: skip
    assert played.end.facts == ("served:m-1",)


def test_members_that_strict_clients_expect_are_added() -> None:
    raw = orjson.dumps({"choices": [{"message": {"role": "system", "content": "hi"}, "finish_reason": "stop"}], "x": 1})
    played = play(body_of(), CARD, [Success(200, raw, orjson.loads(raw), request_id="r")])
    choice = played.body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "hi", "refusal": None}
    assert (choice["index"], choice["logprobs"]) == (0, None)
    assert (played.body["object"], played.body["id"], played.body["x"]) == ("chat.completion", "r", 1)


def test_an_empty_finish_reason_with_tool_calls_becomes_tool_calls() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    played = play(body_of(), CARD, [complete({"tool_calls": [call]}, finish="")])
    assert played.body["choices"][0]["finish_reason"] == "tool_calls"


def test_reasoning_counted_beside_the_completion_is_folded_in() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 35,
             "completion_tokens_details": {"reasoning_tokens": 20}}  # fmt: skip
    played = play(body_of(), CARD, [complete("hi", usage=usage)])
    assert played.end.usage == played.end.billed == Usage(10, 0, 25, 20)  # type: ignore[union-attr]
    assert played.body["usage"]["completion_tokens"] == 25


def test_a_stream_without_usage_is_estimated_and_the_line_says_so() -> None:
    silent, told = complete("four words of text"), complete("four words of text")
    del silent.data["usage"]
    card = Card("p", "m", stream=True)
    played = play(body_of(), card, [silent])
    assert isinstance(played.end, Answer)
    assert played.end.billed.input_tokens > 0 and played.end.billed.output_tokens > 0
    assert played.body["usage"]["estimated"] is True
    assert played.end.note["usage"] == "estimated" and "usage:estimated" in played.end.facts
    played = play(body_of(), card, [told])
    assert isinstance(played.end, Answer)
    assert "usage" not in played.end.note and "usage:estimated" not in played.end.facts


def test_a_fan_out_counts_the_prompt_once_in_usage_and_each_time_in_the_bill() -> None:
    played = play(body_of(n=3), CARD, [complete(str(i), created=i) for i in range(3)])
    assert played.contents == ["0", "1", "2"]
    assert [choice["index"] for choice in played.body["choices"]] == [0, 1, 2]
    assert played.body["created"] == 2
    assert played.body["usage"] == {"prompt_tokens": 10, "completion_tokens": 15, "total_tokens": 25}
    assert isinstance(played.end, Answer)
    assert (played.end.usage, played.end.billed) == (Usage(10, 0, 15), Usage(30, 0, 15))
    assert played.end.note["billed"]["input_tokens"] == 30
    assert "emulated:n" in played.end.facts


def test_different_fingerprints_give_null_and_a_list() -> None:
    answers = [complete("a", system_fingerprint="f1"), complete("b", system_fingerprint="f2")]
    played = play(body_of(n=2), CARD, answers)
    assert played.body["system_fingerprint"] is None
    assert played.end.note["system_fingerprints"] == ["f1", "f2"]
    assert {"fingerprint:f1", "fingerprint:f2"} <= set(played.end.facts)


def test_unknown_response_keys_survive_per_call_in_a_fan_out() -> None:
    played = play(body_of(n=2), CARD, [complete("a", citations=[1]), complete("b", citations=[2])])
    assert [call["body"] for call in played.end.note["upstream"]] == [{"citations": [1]}, {"citations": [2]}]


def test_a_provider_that_ignores_n_is_asked_for_the_missing_choices_only() -> None:
    played = play(body_of(n=3), NATIVE, lambda sent: complete("x"))
    assert [sent.get("n", 1) for sent in played.sent] == [3, 1, 1]
    assert [choice["index"] for choice in played.body["choices"]] == [0, 1, 2]
    assert played.line is not None
    assert played.line.learned == {"n": "ignored"}
    assert "emulated:n" in played.end.facts


def test_choices_come_by_their_index_whatever_their_order() -> None:
    answer = complete("0", "1", "2")
    answer.data["choices"].reverse()
    assert play(body_of(n=3), NATIVE, [answer]).contents == ["0", "1", "2"]


def test_an_answer_without_content_is_asked_for_once_more_and_then_fails() -> None:
    assert play(body_of(), CARD, [complete(None), complete("hi")]).contents == ["hi"]
    failed = play(body_of(), CARD, [complete(None)] * 2).end
    assert isinstance(failed, LineFailure)
    assert failed.code == "choices_missing"
    assert failed.billed == Usage(20, 0, 10)


def test_a_refusal_is_an_answer_outside_the_schema() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    played = play(body_of(response_format=wanted), CARD, [complete({"refusal": "I cannot."})])
    assert isinstance(played.end, Answer)
    assert "refused" in played.end.facts


def test_a_stop_that_the_provider_refuses_is_cut_locally() -> None:
    card = Card("p", "m", support={"stop": Support.REJECTED})
    played = play(body_of(stop=["\n", "END"]), card, [complete("one END two\nthree", finish="length")])
    assert "stop" not in played.sent[0]
    assert played.contents == ["one "]
    assert played.body["choices"][0]["finish_reason"] == "stop"
    assert played.end.note["emulated"] == ["stop"]


def test_an_unlisted_stop_is_sent_and_cut_only_if_it_was_ignored() -> None:
    honoured = play(body_of(stop="END"), CARD, [complete("one ")])
    assert honoured.sent[0]["stop"] == "END"
    assert "emulated" not in honoured.end.note
    assert play(body_of(stop="END"), CARD, [complete("one END")]).contents == ["one "]


def test_a_400_that_names_a_key_demotes_it_and_the_call_is_made_again() -> None:
    refuses_n = play(body_of(n=2), NATIVE, lambda sent: "n" if sent.get("n") else complete("x"))
    assert [sent.get("n", 1) for sent in refuses_n.sent] == [2, 1, 1]
    refuses_seed = play(body_of(seed=1, n=2), CARD, lambda sent: "seed" if "seed" in sent else complete("x"))
    assert [("seed" in sent) for sent in refuses_seed.sent] == [True, True, False, False]
    assert refuses_seed.end.note["seed"] == "not_sent"
    assert refuses_seed.line is not None
    assert refuses_seed.line.learned == {"seed": "rejected"}


def test_a_token_limit_refused_under_one_name_is_sent_under_the_other() -> None:
    played = play(body_of(max_tokens=5), CARD, lambda sent: "max_tokens" if "max_tokens" in sent else complete("x"))
    assert played.sent[-1]["max_completion_tokens"] == 5


def test_a_400_on_what_nothing_can_stand_in_for_stands() -> None:
    body = body_of(presence_penalty=1)
    line = Answering(body, orjson.dumps(body), plan_line(body, CARD), schemas=SCHEMAS)
    assert not line.demote(line.next_calls()[0], "presence_penalty")


def test_a_token_limit_refused_under_both_names_stands() -> None:
    body = body_of(max_tokens=5)
    line = Answering(body, orjson.dumps(body), plan_line(body, CARD), schemas=SCHEMAS)
    assert line.demote(line.next_calls()[0], "max_tokens")
    assert not line.demote(line.next_calls()[0], "max_completion_tokens")


def test_kept_choices_survive_a_restart_and_are_not_paid_for_again() -> None:
    body = body_of(n=3, seed=1)
    plan = plan_line(body, CARD)
    line = Answering(body, orjson.dumps(body), plan, schemas=SCHEMAS)
    calls = line.next_calls()
    line.accept(calls[1], complete("one", created=9))
    stored = orjson.loads(orjson.dumps(line.snapshot()))
    again = Answering(body, orjson.dumps(body), plan, progress=stored, schemas=SCHEMAS)
    rest = again.next_calls()
    assert [(call.indices, call.seed) for call in rest] == [((0,), 1), ((2,), 3)]
    for call in rest:
        again.accept(call, complete("more"))
    end = again.finish()
    assert isinstance(end, Answer)
    assert [c["message"]["content"] for c in orjson.loads(end.body)["choices"]] == ["more", "one", "more"]
    assert end.billed == Usage(30, 0, 15)


def test_a_line_that_moves_on_tells_who_gave_each_choice_and_what_was_done_to_it() -> None:
    body = body_of(n=3, response_format=WANTED)
    line = Answering(body, orjson.dumps(body), plan_line(body, CARD), schemas=SCHEMAS)
    first, second, _ = line.next_calls()
    line.accept(first, complete({"refusal": "No."}))
    line.accept(second, complete('```json\n{"a": 2}\n```'))
    stored = orjson.loads(orjson.dumps(line.snapshot()))
    moved = Answering(body, orjson.dumps(body), plan_line(body, Card("q", "m")), progress=stored, schemas=SCHEMAS)
    moved.accept(moved.next_calls()[0], complete('{"a": 3}'))
    end = moved.finish()
    assert [call["provider"] for call in end.note["upstream"]] == ["p", "p", "q"]
    assert {"refused", "schema:extracted"} <= set(end.facts)


def test_a_line_without_any_answer_has_nothing_to_keep() -> None:
    body = body_of()
    line = Answering(body, orjson.dumps(body), plan_line(body, CARD), schemas=SCHEMAS)
    line.next_calls()
    assert line.snapshot() == {}


def test_a_line_that_fails_by_a_call_still_shows_the_answers_it_paid_for() -> None:
    body = body_of(n=2)
    line = Answering(body, orjson.dumps(body), plan_line(body, CARD), schemas=SCHEMAS)
    assert line.describe_failure() == {}
    line.accept(line.next_calls()[0], complete("one"))
    assert [entry["message"]["content"] for entry in line.describe_failure()["rejected"]] == ["one"]


def test_a_dropped_call_is_handed_out_again() -> None:
    body = body_of(n=2)
    line = Answering(body, orjson.dumps(body), plan_line(body, CARD), schemas=SCHEMAS)
    first, second = line.next_calls()
    assert line.next_calls() == []
    line.drop(first)
    assert [call.indices for call in line.next_calls()] == [(0,)]
    line.accept(second, complete("x"))
    assert not line.is_done


@pytest.mark.parametrize(
    ("endpoint", "body", "data"),
    [
        ("/v1/embeddings", {"input": "x"}, {"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 3}}),
        ("/v1/responses", {"input": "x"}, {"output": [], "usage": {"input_tokens": 3, "output_tokens": 2}}),
    ],
)
def test_other_endpoints_pass_through_with_their_usage(
    endpoint: str, body: dict[str, Any], data: dict[str, Any]
) -> None:
    raw = orjson.dumps(data)
    played = play({"model": "m", **body}, Card("p", "own"), [Success(200, raw, data)], endpoint=endpoint)
    assert played.sent[0]["model"] == "own"
    assert isinstance(played.end, Answer)
    assert (played.end.body, played.end.usage.input_tokens) == (raw, 3)


def test_an_embedding_without_data_is_asked_for_once_more_and_then_fails() -> None:
    empty = Success(200, b"{}", {})
    failed = play({"model": "e", "input": "x"}, Card("p", "e"), [empty, empty], endpoint="/v1/embeddings").end
    assert isinstance(failed, LineFailure)


ANSWERS = st.sampled_from(['{"a": 1}', '{"a": "x"}', "prose", '```json\n{"a": 2}\n```', None, ""])
WANTED = {"type": "json_schema", "json_schema": {"name": "a", "schema": {
    "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}}  # fmt: skip
MODES = st.sampled_from(["strict", "schema", "tool", "json_object", None])


@settings(max_examples=200)
@given(
    st.data(),
    st.integers(1, 4),
    st.builds(
        Card,
        provider=st.just("p"),
        model=st.just("m"),
        support=st.dictionaries(st.sampled_from(["n", "json_schema", "json_object"]), st.sampled_from(list(Support))),
        schema_mode=MODES,
        n_max=st.integers(1, 4),
    ),
)
def test_a_line_always_ends_valid_or_failed_within_its_budget(data: st.DataObject, n: int, card: Card) -> None:
    """Whatever comes back: every kept choice is valid, the bill is the sum of all calls, and calls are bounded."""

    def upstream(sent: dict[str, Any]) -> Success:
        count = data.draw(st.integers(0, sent.get("n", 1)))
        return complete(*[data.draw(ANSWERS) for _ in range(count)])

    played = play(body_of(n=n, response_format=WANTED, seed=3), card, upstream, schema_retries=1)
    assert len(played.calls) <= n * (2 + 3 + 4)
    billed = played.end.billed
    assert billed.input_tokens == 10 * len(played.calls)
    if isinstance(played.end, Answer):
        assert [orjson.loads(text or "")["a"] for text in played.contents]
        assert len(played.contents) == n
    else:
        assert played.end.code in ("json_schema_invalid", "choices_missing")
        assert "rejected" in played.end.note
    seeds = [sent["seed"] for sent in played.sent if "seed" in sent]
    assert all((seed - 3) % 1_000_000 < n for seed in seeds)


def test_progress_of_another_version_starts_the_line_anew() -> None:
    body = body_of(n=2)
    for damaged in ({"records": 5}, {"records": [{"what": 1}], "choices": []}, {"provider": "p"}):
        line = Answering(body, orjson.dumps(body), plan_line(body, CARD), progress=damaged, schemas=SCHEMAS)
        assert len(line.next_calls()) == 2


CARDS = (
    CARD,
    Card("q", "m", support={"n": Support.NATIVE, "json_schema": Support.NATIVE}, schema_mode="strict"),
    Card("r", "m", support={"n": Support.NATIVE, "json_object": Support.NATIVE}, n_max=2),
)


@settings(max_examples=150)
@given(st.data(), st.integers(1, 5), st.booleans())
def test_an_unlucky_way_through_the_workers_pays_for_no_choice_twice(
    data: st.DataObject, n: int, shaped: bool
) -> None:
    """Answers in any order, calls given up, 400s, restarts and other providers in between: a choice that is
    kept is never asked for again, and the bill is the sum of what was answered."""
    body = body_of(n=n, seed=9, **({"response_format": WANTED} if shaped else {}))
    raw = orjson.dumps(body)
    card = CARDS[data.draw(st.integers(0, 2))]
    line = Answering(body, raw, plan_line(body, card), schemas=SCHEMAS)
    waiting: list[Any] = []
    kept: set[int] = set()
    answered = 0
    for _ in range(200):
        if line.is_done:
            break
        fresh = line.next_calls()
        asked = [index for call in fresh for index in call.indices]
        assert not kept & set(asked)
        waiting += fresh
        call = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        fate = data.draw(st.sampled_from(["answer"] * 6 + ["drop", "400", "restart", "hop"]))
        if fate == "answer":
            line.accept(call, complete(*[data.draw(ANSWERS) for _ in call.indices]))
            answered += 1
        elif fate == "400":
            line.demote(call, data.draw(st.sampled_from(["n", "seed", "response_format", "user"])))
        elif fate == "drop" or line.is_doomed:
            line.drop(call)
        else:
            card = card if fate == "restart" else CARDS[data.draw(st.integers(0, 2))]
            stored = orjson.loads(orjson.dumps(line.snapshot()))
            line = Answering(body, raw, plan_line(body, card), progress=stored, schemas=SCHEMAS)
            waiting = []
        kept = {index for index, choice in enumerate(line.choices) if choice.kept is not None}
    assert line.is_done
    assert not waiting
    end = line.finish()
    assert end.billed.input_tokens == 10 * answered
    if isinstance(end, Answer):
        choices = orjson.loads(end.body)["choices"]
        assert [choice["index"] for choice in choices] == list(range(n))
        if shaped:
            assert all(isinstance(orjson.loads(choice["message"]["content"])["a"], int) for choice in choices)


def test_options_are_part_of_the_plan() -> None:
    assert plan_line(body_of(), CARD, PlanOptions(schema_retries=0)).options.schema_retries == 0
