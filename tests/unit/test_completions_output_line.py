"""Lines of output and error files."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.completions.output_line import own_error_line, response_line


def test_a_success_line_has_openais_keys_in_openais_order_and_then_batchmill() -> None:
    line = response_line("batch_req_1", "a", b'{"id":"c"}', {"provider": "p"}, request_id="r")
    assert line == (
        b'{"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "request_id": "r", '
        b'"body": {"id":"c"}}, "error": null, "batchmill": {"provider":"p"}}'
    )


def test_an_http_error_has_a_response_and_no_error() -> None:
    body = {"error": {"message": "too long", "type": None, "param": "messages", "code": "context_length_exceeded"}}
    data = json.loads(response_line("b", "a", orjson.dumps(body), {}, request_id="r", status=400))
    assert data["error"] is None
    assert data["response"] == {"status_code": 400, "request_id": "r", "body": body}


def test_our_own_failures_have_an_error_and_no_response() -> None:
    data = json.loads(own_error_line("b", "a", "batch_expired", "Too late."))
    error = {"code": "batch_expired", "message": "Too late."}
    assert data == {"id": "b", "custom_id": "a", "response": None, "error": error}


@pytest.mark.parametrize("mark", ["\u0085", "\u2028", "\u2029"])
def test_line_breaks_that_clients_split_at_are_escaped_everywhere(mark: str) -> None:
    text = f"a{mark}b"
    body = orjson.dumps({"t": text})
    for line in (
        response_line("b", text, body, {"raw": text}, request_id=text),
        own_error_line("b", text, "c", text, {"raw": text}),
    ):
        assert len(line.decode().splitlines()) == 1
        assert json.loads(line)["custom_id"] == text
    assert json.loads(response_line("b", text, body, {}, request_id="r"))["response"]["body"] == {"t": text}


def test_other_text_stays_as_it_is_and_a_single_line_body_is_spliced_unchanged() -> None:
    body = '{"t": "مرحبا 你好 🙂",  "n": 1.50}'.encode()
    assert body in response_line("b", "é", body, {}, request_id="r")


def test_a_pretty_printed_body_becomes_one_line_with_the_same_meaning() -> None:
    body = b'{\r\n  "t": "a\\nb",\n  "n": 123456789012345678901234567890\n}\n'
    line = response_line("b", "a", body, {}, request_id="r")
    assert b"\n" not in line
    assert b"\r" not in line
    assert json.loads(line)["response"]["body"] == json.loads(body)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(TEXT, st.dictionaries(TEXT, JSON, max_size=4), st.booleans(), st.sampled_from([None, orjson.OPT_INDENT_2]))
def test_every_line_reads_back_as_what_was_written(
    custom_id: str, body: dict[str, Any], ascii_only: bool, option: int | None
) -> None:
    raw = orjson.dumps(body, option=option)
    line = response_line("b", custom_id, raw, {"x": body}, request_id="r", output_ascii=ascii_only)
    data = json.loads(line)
    assert (data["custom_id"], data["response"]["body"], data["batchmill"]) == (custom_id, body, {"x": body})
    assert len(line.decode().splitlines()) == 1
    assert line.isascii() or not ascii_only
