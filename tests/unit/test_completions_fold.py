"""Streams folded to one object."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from batch.completions.fold import FoldError, fold_stream


def chunk(*choices: dict[str, Any], **keys: Any) -> bytes:
    body = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **keys}
    return b"data: " + orjson.dumps(body) + b"\n\n"


def delta(index: int = 0, *, finish: str | None = None, **message: Any) -> dict[str, Any]:
    return {"index": index, "delta": message, "finish_reason": finish}


DONE = b"data: [DONE]\n\n"


def test_content_is_joined_and_the_role_is_set_once() -> None:
    data = chunk(delta(role="assistant", content="")) + chunk(delta(role="assistant", content="Hé")) + chunk(
        delta(content="llo", finish="stop")
    )
    body = fold_stream(data + DONE)
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "Héllo", "refusal": None}, "logprobs": None,
         "finish_reason": "stop"}
    ]  # fmt: skip


def test_interleaved_choices_come_out_in_order() -> None:
    data = chunk(delta(1, content="b")) + chunk(delta(0, content="a"), delta(1, content="B", finish="stop"))
    body = fold_stream(data + chunk(delta(0, finish="length")) + DONE)
    assert [(c["message"]["content"], c["finish_reason"]) for c in body["choices"]] == [("a", "length"), ("bB", "stop")]


def test_tool_calls_are_joined_by_index_and_lose_it() -> None:
    first = {"index": 1, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = {"index": 1, "id": "call_1", "function": {"name": "f", "arguments": '{"a"'}}
    rest = {"index": 1, "function": {"arguments": ":1}"}}
    nameless = {"index": 0, "function": {"name": "g", "arguments": "{}"}}
    parts = [chunk(delta(tool_calls=[part])) for part in (first, more, rest, nameless)]
    message = fold_stream(b"".join(parts) + chunk(delta(finish="tool_calls")) + DONE)["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][1] == {
        "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}
    }  # fmt: skip
    assert message["tool_calls"][0]["id"].startswith("call_")


def test_tool_calls_without_an_index_are_told_apart_by_their_ids() -> None:
    one = {"id": "x", "function": {"name": "f", "arguments": "1"}}
    two = {"id": "y", "function": {"name": "g", "arguments": "2"}}
    more = {"id": "y", "function": {"arguments": "3"}}
    parts = [chunk(delta(tool_calls=[part])) for part in (one, two, more)]
    calls = fold_stream(b"".join(parts) + DONE)["choices"][0]["message"]["tool_calls"]
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [("x", "1"), ("y", "23")]


def test_custom_tools_and_the_old_function_call_are_folded_too() -> None:
    data = (
        chunk(delta(tool_calls=[{"index": 0, "id": "c", "type": "custom", "custom": {"name": "sql", "input": "sel"}}]))
        + chunk(delta(tool_calls=[{"index": 0, "custom": {"input": "ect"}}]))
        + chunk(delta(1, function_call={"name": "old", "arguments": "{"}))
        + chunk(delta(1, function_call={"arguments": "}"}))
    )
    first, second = fold_stream(data + DONE)["choices"]
    assert first["message"]["tool_calls"][0]["custom"] == {"name": "sql", "input": "select"}
    assert second["message"]["function_call"] == {"name": "old", "arguments": "{}"}


def test_the_last_usage_wins_and_a_later_null_does_not_erase_it() -> None:
    data = chunk(delta(content="x", finish="stop"), usage={"total_tokens": 1}) + chunk(usage={"total_tokens": 2})
    assert fold_stream(data + chunk(usage=None) + DONE)["usage"] == {"total_tokens": 2}


def test_logprobs_and_reasoning_are_joined_and_vendor_keys_survive() -> None:
    data = chunk({**delta(reasoning_content="a"), "logprobs": {"content": [1]}}, provider="up", obfuscation="x")
    data += chunk({**delta(reasoning_content="b", finish="stop"), "logprobs": {"content": [2], "refusal": None}})
    body = fold_stream(data + DONE)
    assert body["choices"][0]["message"]["reasoning_content"] == "ab"
    assert body["choices"][0]["logprobs"] == {"content": [1, 2], "refusal": None}
    assert body["provider"] == "up"
    assert "obfuscation" not in body


def test_comments_other_objects_and_a_missing_done_are_forgiven() -> None:
    noise = b": OPENROUTER PROCESSING\n\nevent: ping\n\n" + chunk(delta(content="no"), object="")
    assert fold_stream(noise + chunk(delta(content="yes", finish="stop")))["choices"][0]["message"]["content"] == "yes"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (chunk(delta(content="x")), "before every choice"),
        (chunk(delta(0, finish="stop"), delta(1, content="x")), "before every choice"),
        (b"", "no choices"),
        (DONE, "no choices"),
        (b"data: {oops\n\n", "not JSON"),
    ],
)
def test_a_broken_stream_is_no_answer(data: bytes, message: str) -> None:
    with pytest.raises(FoldError, match=message):
        fold_stream(data)


def test_an_error_event_carries_the_providers_error() -> None:
    with pytest.raises(FoldError) as caught:
        fold_stream(chunk(delta(content="x")) + b'data: {"error": {"message": "busy", "code": 503}}\n\n')
    assert caught.value.error == {"message": "busy", "code": 503}


STREAM = (
    "\ufeff".encode()
    + b": hello\r\n\r\n"
    + chunk(delta(content="Gr\u00fc\u00dfe "), delta(1, content="\u4f60")).replace(b"\n", b"\r\n")
    + chunk(delta(content="!", finish="stop")).replace(b"\n", b"\r")
    + b'data: {"object": "chat.completion.chunk",\ndata: "choices": [{"index": 1, "finish_reason": "stop"}]}\n\n'
    + DONE
)


def test_line_ends_of_any_kind_a_mark_at_the_start_and_events_of_several_lines_are_read() -> None:
    body = fold_stream(STREAM + chunk(delta(content="after the end")))
    assert [c["message"]["content"] for c in body["choices"]] == ["Grüße !", "你"]
