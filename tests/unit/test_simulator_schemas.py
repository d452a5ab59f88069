"""Answers for response_format satisfy their schema, judged by a library the generator does not use."""

from __future__ import annotations

import hashlib
from typing import Any

import jsonschema_rs
import pytest

from batch.simulator.schemas import schema_value

OBJECT = {"type": "object", "additionalProperties": False}
SCHEMAS: dict[str, Any] = {
    "strict object": {
        **OBJECT,
        "required": ["title", "score", "tags", "when"],
        "properties": {
            "title": {"type": "string", "minLength": 3, "maxLength": 12},
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "tags": {
                "type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 2, "maxItems": 3, "uniqueItems": True,
            },
            "when": {"type": "string", "format": "date-time"},
        },
    },
    "local refs and recursion": {
        "$defs": {"node": {
            **OBJECT, "required": ["name", "next"],
            "properties": {"name": {"type": "string"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
        }},
        "$ref": "#/$defs/node",
    },
    "recursive list": {
        **OBJECT, "required": ["children"],
        "properties": {"children": {"type": "array", "items": {"$ref": "#"}}},
    },
    "all of": {
        "allOf": [
            {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 5}}},
            {"required": ["b"], "properties": {"b": {"const": "x"}, "a": {"maximum": 6}}},
        ]
    },
    "one of": {"oneOf": [{"type": "string", "maxLength": 4}, {"type": "integer", "multipleOf": 7, "minimum": 8}]},
    "exclusive bounds": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 6},
    "negative numbers": {"type": "number", "maximum": -5},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}\\d{3}-(red|blue)[^0-9]?$"},
    "type list": {"type": ["string", "null"]},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}], "items": False},
    "no type": {"properties": {"n": {"minimum": 3}}, "required": ["n"]},
    "min properties": {"type": "object", "minProperties": 2, "additionalProperties": {"type": "integer"}},
    "scalars": {"type": "boolean"},
    "anything": True,
}  # fmt: skip
FORMATS = ["date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid", "json-pointer"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_drawn_value_is_valid(name: str) -> None:
    validator = jsonschema_rs.validator_for(SCHEMAS[name])
    for number in range(50):
        value = schema_value(SCHEMAS[name], hashlib.sha256(b"%d" % number).digest())
        assert validator.is_valid(value), value


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_spelled_as_the_standard_says(name: str) -> None:
    validator = jsonschema_rs.validator_for({"type": "string", "format": name}, validate_formats=True)
    for number in range(20):
        value = schema_value({"type": "string", "format": name}, b"%d" % number)
        assert validator.is_valid(value), value


def test_the_same_key_draws_the_same_value_and_another_key_another() -> None:
    schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 10**6}, "minItems": 5}
    assert schema_value(schema, b"one") == schema_value(schema, b"one")
    assert schema_value(schema, b"one") != schema_value(schema, b"two")


@pytest.mark.parametrize("schema", [
    {"$ref": "#/nowhere"}, {"$ref": "https://example.com/s"},
    {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"type": "string", "pattern": "(?<=a)b\\1("},
    {"type": "array", "uniqueItems": True, "items": {"const": 1}, "minItems": 3},
])  # fmt: skip
def test_a_schema_that_cannot_be_met_still_gets_an_answer(schema: dict[str, Any]) -> None:
    schema_value(schema, b"key")
