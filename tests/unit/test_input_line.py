"""One input line, its defaults, and custom_ids seen."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.domain.custom_ids import SeenIds
from batch.domain.line import InputLine, LineProblem, merge_defaults, parse_line, read_body, read_custom_id

CHAT = "/v1/chat/completions"
TEXT = st.text(st.characters(codec="utf-8"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def envelope(body: bytes) -> bytes:
    return b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":' + body + b"}"


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), JSON, max_size=5))
def test_a_body_is_kept_as_it_was_written(body: dict[str, object]) -> None:
    """Byte for byte, unless a deciding key stands in it twice; always the same value."""
    written = orjson.dumps(body, option=orjson.OPT_INDENT_2).replace(b"\n", b" ")
    line = parse_line(envelope(written), CHAT)
    assert isinstance(line, InputLine)
    assert line.body == body
    assert orjson.loads(line.body_bytes) == body
    assert read_body(envelope(written)).strip() == written.strip()


def test_big_integers_survive_in_the_bytes() -> None:
    """The parsed body may round them; what is sent does not."""
    line = parse_line(envelope(b'{"x": 123456789012345678901234567890}'), CHAT)
    assert isinstance(line, InputLine)
    assert line.body_bytes == b'{"x": 123456789012345678901234567890}'


@given(st.binary(max_size=60) | JSON.map(orjson.dumps))
def test_no_line_raises(raw: bytes) -> None:
    """Whatever bytes: a line or a problem."""
    assert isinstance(parse_line(raw, CHAT), (InputLine, LineProblem))
    read_custom_id(raw)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"custom_id": None}, "missing_required_parameter", "custom_id"),
        ({"custom_id": ""}, "missing_required_parameter", "custom_id"),
        ({"custom_id": 5}, "invalid_type", "custom_id"),
        ({"custom_id": "x" * 513}, "invalid_value", "custom_id"),
        ({"method": None}, "missing_required_parameter", "method"),
        ({"method": "post"}, "invalid_method", "method"),
        ({"url": "/v1/embeddings"}, "invalid_url", "url"),
        ({"body": None}, "missing_required_parameter", "body"),
        ({"body": "x"}, "invalid_type", "body"),
        ({"batchmill": "xai"}, "invalid_type", "batchmill"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], code: str, param: str) -> None:
    """With OpenAI's codes."""
    line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": {}, **change}
    problem = parse_line(orjson.dumps({k: v for k, v in line.items() if v is not None}), CHAT)
    assert isinstance(problem, LineProblem)
    assert (problem.code, problem.param) == (code, param)
    assert problem.custom_id == ("a" if param != "custom_id" else None)


@given(
    st.dictionaries(st.sampled_from("abcdef"), JSON, max_size=4),
    st.dictionaries(st.sampled_from("defghi"), JSON, max_size=4),
)
def test_defaults_fill_gaps_and_change_nothing_else(body: dict[str, object], defaults: dict[str, object]) -> None:
    """The bytes and the parsed body agree."""
    merged, written = merge_defaults(body, b" " + orjson.dumps(body), defaults)
    assert merged == {**defaults, **body}
    assert orjson.loads(written) == merged


@given(st.lists(st.text(max_size=3), max_size=60))
def test_custom_ids_that_come_twice_are_candidates_and_no_others(names: list[str]) -> None:
    """Hashes are compared here, texts by the caller."""
    seen = SeenIds()
    for name in names:
        seen.add(name)
    repeated = seen.repeated()
    assert {name for name in names if hash(name) in repeated} == {name for name in names if names.count(name) > 1}


@pytest.mark.parametrize("line", [b'["not an object"]', b"null", b'{"a":', b'{"a":1},'])
def test_a_line_that_is_no_object_says_what_was_probably_meant(line: bytes) -> None:
    """Without a column: the slip is of the file, not of a character."""
    problem = parse_line(line, "/v1/chat/completions")
    assert isinstance(problem, LineProblem)
    assert problem.code == "invalid_json_line" and "Column" not in problem.message
