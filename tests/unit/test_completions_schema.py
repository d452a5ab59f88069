"""Schemas: agreement with the JSON-Schema-Test-Suite, and hostile ones that cost nothing."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batch.completions.schema import MAX_SCHEMA_BYTES, SchemaCache
from batch.completions.schema_bounds import measure
from batch.domain.errors import InvalidRequest

SUITE = Path(__file__).parent / "data" / "json_schema_test_suite.jsonl"
# What the bounds refuse on purpose: other documents, and $id inside a schema.
REFUSED = ("references outside the schema", "'$id' inside the schema")


@pytest.fixture
def schemas() -> Iterator[SchemaCache]:
    cache = SchemaCache()
    yield cache
    cache.close()


def suite_groups() -> list[dict[str, Any]]:
    return [json.loads(line) for line in SUITE.read_text().splitlines()]


@pytest.mark.parametrize("draft", ["draft2020-12", "draft7"])
def test_every_answer_agrees_with_the_test_suite(draft: str, schemas: SchemaCache) -> None:
    """Each case is judged as the suite says, or its schema is refused for one of two stated reasons."""
    agreed, refused, wrong = 0, 0, []
    for group in (group for group in suite_groups() if group["draft"] == draft):
        document = group["schema"]
        if draft == "draft7" and isinstance(document, dict):
            document = {"$schema": "http://json-schema.org/draft-07/schema#", **document}
        try:
            schema = schemas.compile(document)
        except InvalidRequest as error:
            assert error.message.startswith(REFUSED), f"{group['about']}: {error.message}"
            refused += len(group["tests"])
            continue
        for data, valid in group["tests"]:
            agreed += 1
            if (schema.errors(data, json.dumps(data)) == []) is not valid:
                wrong.append((group["keyword"], group["about"], data))
    assert wrong == []
    assert refused < agreed / 10


def doubling(levels: int) -> dict[str, Any]:
    """Some 3 kB of nested anyOf and $ref: the work doubles with each level."""
    stores: dict[str, Any] = {
        f"d{level}": {"anyOf": [{"$ref": f"#/$defs/d{level + 1}"}, {"$ref": f"#/$defs/d{level + 1}"}]}
        for level in range(levels)
    }
    return {"$defs": {**stores, f"d{levels}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def chain(length: int) -> dict[str, Any]:
    stores: dict[str, Any] = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(length)}
    return {"$defs": {**stores, f"d{length}": {}}, "$ref": "#/$defs/d0"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"$ref": "http://127.0.0.1:9/schema"}, "references outside"),
        ({"$ref": "file:///etc/passwd"}, "references outside"),
        ({"properties": {"a": {"$dynamicRef": "https://example.org/x"}}}, "references outside"),
        ({"$schema": "http://127.0.0.1:9/meta"}, "meta-schema"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"$ref": "#"}, "without stepping into the answer"),
        ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}, "without stepping"),
        (doubling(30), "expands to more than 100,000"),
        (nested(70), "nests deeper than 64"),
        (chain(2_000), "lead deeper than 256"),
        ({"pattern": "((a{1000}){1000}){1000}"}, "regex"),
        ({"pattern": "(?=look)around"}, "regex"),
        ({"pattern": "("}, "regex"),
        ({"type": "strin"}, "/type"),
        ({"enum": ["x" * 1000] * 10_000}, "10,030,010 bytes"),
        ([], "not"),
    ],
)
def test_a_bad_or_hostile_schema_is_refused_with_a_reason_and_at_once(
    document: Any, message: str, schemas: SchemaCache
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        schemas.compile(document)


def test_no_reference_ever_opens_a_connection(schemas: SchemaCache) -> None:
    """A listener stands where the references point; nobody comes."""
    visits: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/schema.json"

        def listen() -> None:
            try:
                visits.append(listener.accept())
            except TimeoutError:
                return

        thread = threading.Thread(target=listen)
        thread.start()
        for document in (
            {"$ref": url},
            {"$id": url, "$ref": "other.json"},
            {"$schema": url},
            {"items": {"$dynamicRef": url}},
            {"$id": url, "$ref": "#/$defs/a", "$defs": {"a": {"$ref": f"{url}#x"}}},
            {"$id": url, "type": "string"},
        ):
            try:
                schemas.compile(document).errors("x", '"x"')
            except InvalidRequest:
                continue
        thread.join()
    assert visits == []


@pytest.mark.timeout(60)
def test_patterns_run_in_linear_time(schemas: SchemaCache) -> None:
    schema = schemas.compile({"type": "string", "pattern": "^(a+)+$"})
    text = "a" * 50_000 + "!"
    assert schema.errors(text, json.dumps(text))


def exponential() -> dict[str, Any]:
    """Two alternatives that both lead back through the same member: 2^depth ways through an answer."""
    step = {"type": "object", "properties": {"a": {"$ref": "#/$defs/e"}}, "required": ["a"]}
    never = {"type": "object", "properties": {"a": {"$ref": "#/$defs/e"}}, "required": ["a", "b"]}
    return {"$defs": {"e": {"anyOf": [{"type": "number"}, never, step, never]}}, "$ref": "#/$defs/e"}


def deep_answer(depth: int) -> Any:
    answer: Any = "no number"
    for _ in range(depth):
        answer = {"a": answer}
    return answer


@pytest.mark.timeout(60)
def test_a_branching_recursion_is_stopped_after_its_time_and_the_next_check_still_works(
    schemas: SchemaCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch.completions.schema.TIME_LIMIT_S", 0.3)
    schema = schemas.compile(exponential())
    answer = deep_answer(60)
    assert "was stopped" in schema.errors(answer, json.dumps(answer))[0]
    assert schema.errors({"a": 1}, '{"a": 1}') == []
    assert schema.errors({"a": "x"}, '{"a": "x"}') != []


def test_the_checking_process_ends_with_its_cache() -> None:
    cache = SchemaCache()
    cache.compile(exponential()).errors(1, "1")
    child = cache._killable._child
    assert child is not None
    cache.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


@pytest.mark.parametrize(
    ("document", "branches"),
    [
        (exponential(), True),
        ({"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}, False),
        ({"properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}, False),
        ({"properties": {"a": {"$ref": "#"}}, "patternProperties": {"^a": {"$ref": "#"}}}, True),
        ({"items": {"$ref": "#"}, "contains": {"$ref": "#"}}, True),
        ({"type": "string"}, False),
    ],
)
def test_only_recursion_that_branches_needs_a_process_of_its_own(document: Any, branches: bool) -> None:
    assert measure(document).branches_back is branches


def test_big_answers_and_big_products_are_heavy(schemas: SchemaCache) -> None:
    small = schemas.compile({"type": "object"})
    assert not small.is_heavy(100_000)
    assert small.is_heavy(300_000)
    assert schemas.compile({"items": {"uniqueItems": True}}).is_heavy(40_000)
    text = json.dumps(["x" * 300_000])
    assert small.errors(json.loads(text), text)[0].startswith("/: ")


def test_a_schema_is_compiled_once_and_its_failure_is_remembered(schemas: SchemaCache) -> None:
    document = {"type": "object", "properties": {"a": {"const": 1}}}
    assert schemas.compile(document) is schemas.compile(json.loads(json.dumps(document)))
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            schemas.compile({"type": 5})


def test_the_cache_forgets_its_oldest_and_never_grows_past_its_capacity() -> None:
    cache = SchemaCache(capacity=3)
    first = cache.compile({"const": 0})
    for number in range(1, 6):
        cache.compile({"const": number})
    assert len(cache._compiled) == 3
    assert cache.compile({"const": 0}) is not first


def test_errors_are_five_at_most_and_name_their_place(schemas: SchemaCache) -> None:
    schema = schemas.compile({"type": "array", "items": {"type": "integer"}})
    errors = schema.errors(["x"] * 50, json.dumps(["x"] * 50))
    assert len(errors) == 5
    assert errors[0] == '/0: "x" is not of type "integer"'


def test_a_schema_at_the_size_limit_is_still_taken(schemas: SchemaCache) -> None:
    assert schemas.compile({"const": "x" * (MAX_SCHEMA_BYTES - 20)}).errors("y", '"y"')
