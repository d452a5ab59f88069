"""The small rules that the request rules are made of, and the list that collects problems.

Owns: Problem (code, message, param as in OpenAI's batch errors: "body.…"), Problems, and rules for
numbers, strings and choices. A rule is a function (value, path, problems). Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from batch.completions.schema import SchemaCache
from batch.domain.errors import InvalidRequest


class Problem(NamedTuple):
    """One entry of a batch's `errors.data`, without its line. `param` starts with "body."."""

    code: str
    message: str
    param: str | None


class Problems:
    """Collects. At most 20 are kept of one body: enough to mend it, bounded for a hostile one."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(self, code: str, message: str, path: str) -> None:
        if len(self.found) < 20:
            self.found.append(Problem(code, message, f"body.{path}"))

    def missing(self, path: str) -> None:
        self.add("missing_required_parameter", f"Missing required parameter: '{path}'.", path)

    def wrong_type(self, path: str, expected: str, value: Any) -> None:
        self.add(
            "invalid_type",
            f"Invalid type for '{path}': expected {expected}, but got {_name_type(value)} instead.",
            path,
        )

    def check_schema(self, schema: Any, path: str, schemas: SchemaCache) -> None:
        try:
            schemas.compile(schema)
        except InvalidRequest as error:
            self.add("invalid_request", f"Invalid schema in '{path}': {error.message}", path)


Rule = Callable[[Any, str, Problems], None]


def number(low: float, high: float) -> Rule:
    def check(value: Any, path: str, problems: Problems) -> None:
        if type(value) not in (int, float):
            problems.wrong_type(path, "a number", value)
        elif not low <= value <= high:
            _outside(value, path, low, high, problems)

    return check


def integer(low: int, high: int) -> Rule:
    def check(value: Any, path: str, problems: Problems) -> None:
        if type(value) is not int:
            problems.wrong_type(path, "an integer", value)
        elif not low <= value <= high:
            _outside(value, path, low, high, problems)

    return check


def string(at_least: int = 0, at_most: int | None = None) -> Rule:
    def check(value: Any, path: str, problems: Problems) -> None:
        if not isinstance(value, str):
            problems.wrong_type(path, "a string", value)
        elif len(value) < at_least:
            problems.add("invalid_value", f"'{path}' must not be empty.", path)
        elif at_most is not None and len(value) > at_most:
            problems.add(
                "invalid_value", f"'{path}' is {len(value)} characters long; {at_most} are allowed.", path
            )

    return check


def boolean(value: Any, path: str, problems: Problems) -> None:
    if type(value) is not bool:
        problems.wrong_type(path, "a boolean", value)


def any_of(*allowed: str) -> Rule:
    listed = ", ".join(f"'{name}'" for name in allowed)

    def check(value: Any, path: str, problems: Problems) -> None:
        if not isinstance(value, str):
            problems.wrong_type(path, f"one of {listed}", value)
        elif value not in allowed:
            problems.add(
                "invalid_value", f"Invalid value: '{value[:64]}'. Supported values are: {listed}.", path
            )

    return check


def string_map(pairs: int, key_length: int, value_length: int) -> Rule:
    def check(value: Any, path: str, problems: Problems) -> None:
        if not isinstance(value, dict):
            problems.wrong_type(path, "an object", value)
            return
        if len(value) > pairs:
            problems.add("invalid_value", f"'{path}' holds {len(value)} pairs; {pairs} are allowed.", path)
        for key, entry in value.items():
            if len(key) > key_length:
                problems.add("invalid_value", f"A key of '{path}' is over {key_length} characters.", path)
            string(at_most=value_length)(entry, f"{path}.{key[:key_length]}", problems)

    return check


def _outside(value: Any, path: str, low: float, high: float, problems: Problems) -> None:
    if value < low:
        problems.add("invalid_value", f"Invalid '{path}': {value} is below the minimum of {low}.", path)
    else:
        problems.add("invalid_value", f"Invalid '{path}': {value} is above the maximum of {high}.", path)


_TYPE_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    type(None): "null",
}


def _name_type(value: Any) -> str:
    return _TYPE_NAMES.get(type(value), type(value).__name__)
