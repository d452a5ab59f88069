"""What a request body must look like before a token is spent on it.

Owns: checking a body against request_schema.py, what depends on a neighbour in it, and the words for what is
wrong, each with its place. Unknown keys pass untouched; what a provider can do is plan.py's.
May not touch: cards, I/O. Serves ingest: a plain body costs a few microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import jsonschema_rs

from batch.completions import request_schema as shapes
from batch.completions.schema import SchemaCache
from batch.domain.errors import InvalidRequest

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES = "/v1/responses"
ENDPOINTS = (CHAT, EMBEDDINGS, RESPONSES)
RULES: Mapping[str, Any] = shapes.PARAMETERS

_BODIES = {
    CHAT: shapes.CHAT_BODY, EMBEDDINGS: shapes.EMBEDDINGS_BODY, RESPONSES: shapes.RESPONSES_BODY,
}  # fmt: skip
_VALIDATORS = {endpoint: jsonschema_rs.Draft202012Validator(body) for endpoint, body in _BODIES.items()}
_WITH_NEIGHBOURS = frozenset({"top_logprobs", "response_format", "tools", "tool_choice", "input", "n", "text"})
_FREE = frozenset({"schema", "parameters"})  # the user's own schemas, where null may mean something
_MOST = 20  # problems that are kept of one body: enough to mend it, bounded for a hostile one


class Problem(NamedTuple):
    """One entry of a batch's `errors.data`, without its line. `param` starts with "body."."""

    code: str
    message: str
    param: str | None


def check_body(body: dict[str, Any], endpoint: str, schemas: SchemaCache | None = None) -> list[Problem]:
    """The problems of one body, at most 20; an empty list when it may be sent.

    With `schemas`, each json_schema is compiled (once per distinct schema) and a bad one is reported.
    """
    return list(islice(_problems(body, endpoint, schemas), _MOST))


def misspelt_keys(body: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs (key as written, OpenAI's name) for camelCase spellings. They pass, but do nothing."""
    found = []
    for key in body:
        if key not in RULES and (snake := re.sub(r"(?<=[a-z])([A-Z])", r"_\1", key).lower()) in RULES:
            found.append((key, snake))
    return found


def _problems(body: dict[str, Any], endpoint: str, schemas: SchemaCache | None) -> Iterator[Problem]:
    for key in ("model", "messages") if endpoint == CHAT else ("model",):
        if body.get(key) is None:
            yield _problem("invalid_request", f"{key.capitalize()} parameter is required.", key)
    if body.get("stream") is True and endpoint in _APIS:
        text = f"{_APIS[endpoint]}: Streaming is not supported in the Batch API."
        yield _problem("streaming_unsupported", text, "stream")
    validator, known = _VALIDATORS[endpoint], _BODIES[endpoint]["properties"]
    for key, value in body.items():  # JSON Schema takes 1.0 for an integer; providers do not
        if type(value) is float and key in known and known[key].get("type") == "integer":
            yield _wrong_type(key, "an integer", value)
    if not validator.is_valid(body):
        try:
            given = {key: _without_nulls(value) for key, value in body.items() if key in known and value is not None}
        except RecursionError:
            yield _problem("invalid_value", "The body nests too deep.", "messages")
            return
        for error in validator.iter_errors(given):
            if error.instance_path or error.kind.property not in ("model", "messages"):  # type: ignore[attr-defined]
                yield _explain(error, _place_of(error.instance_path, given))
    if not _WITH_NEIGHBOURS.isdisjoint(body):
        yield from _NEIGHBOURS[endpoint](body, schemas)


def _without_nulls(value: Any) -> Any:
    """Null means absent; what the caller's schemas hold is theirs."""
    if isinstance(value, dict):
        return {
            key: entry if key in _FREE else _without_nulls(entry) for key, entry in value.items() if entry is not None
        }
    return [_without_nulls(entry) for entry in value] if isinstance(value, list) else value


# what depends on a neighbour


def _check_chat(body: dict[str, Any], schemas: SchemaCache | None) -> Iterator[Problem]:
    if body.get("top_logprobs") is not None and body.get("logprobs") is not True:
        yield _problem("invalid_value", "'top_logprobs' needs 'logprobs': true.", "top_logprobs")
    wanted = _member(body.get("response_format"), "json_schema")
    if _member(body, "response_format").get("type") == "json_schema" and isinstance(wanted.get("schema"), dict):
        yield from _check_schema(wanted["schema"], "response_format.json_schema.schema", schemas)
    tools = body.get("tools")
    tools = tools if isinstance(tools, list) else []
    for index, tool in enumerate(tools):
        function = _member(tool, "function")
        if function.get("strict") is True and isinstance(function.get("parameters"), dict):
            yield from _check_schema(function["parameters"], f"tools[{index}].function.parameters", schemas)
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else None
    if choice == "required" and not tools:
        yield _problem("invalid_value", "'tool_choice' needs 'tools'.", "tool_choice")
    elif kind in ("function", "custom"):
        name = _member(choice, kind).get("name")
        if isinstance(name, str) and name not in [_member(tool, kind).get("name") for tool in tools]:
            text = f"'tool_choice' names '{name[:64]}', which is not in 'tools'."
            yield _problem("invalid_value", text, "tool_choice")


def _check_embeddings(body: dict[str, Any], schemas: SchemaCache | None) -> Iterator[Problem]:
    given = body.get("input")
    if isinstance(given, list) and given and not _is_embeddable(given):
        yield _wrong_type("input[0]", "strings, token ids, or arrays of token ids throughout", given[0])


def _is_embeddable(given: list[Any]) -> bool:
    if isinstance(given[0], list):
        return all(isinstance(row, list) and row and all(type(t) is int for t in row) for row in given)
    kind = type(given[0])
    return kind in (str, int) and all(type(entry) is kind for entry in given)


def _check_responses(body: dict[str, Any], schemas: SchemaCache | None) -> Iterator[Problem]:
    if body.get("n") is not None:
        text = "'/v1/responses' has no 'n'. Use '/v1/chat/completions', where n is guaranteed, or one line per answer."
        yield _problem("invalid_request", text, "n")
    wanted = _member(body.get("text"), "format")
    if wanted.get("type") == "json_schema":
        yield from _check_schema(wanted.get("schema"), "text.format.schema", schemas)


def _check_schema(schema: Any, path: str, schemas: SchemaCache | None) -> Iterator[Problem]:
    try:
        if schemas is not None:
            schemas.compile(schema)
    except InvalidRequest as error:
        yield _problem("invalid_request", f"Invalid schema in '{path}': {error.message}", path)


def _member(holder: Any, name: str) -> dict[str, Any]:
    """The object called `name`; {} where there is none."""
    found = holder.get(name) if isinstance(holder, dict) else None
    return found if isinstance(found, dict) else {}


_APIS = {CHAT: "Chat Completions", RESPONSES: "Responses"}
_NEIGHBOURS: dict[str, Callable[[dict[str, Any], SchemaCache | None], Iterator[Problem]]] = {
    CHAT: _check_chat,
    EMBEDDINGS: _check_embeddings,
    RESPONSES: _check_responses,
}


# words


def _place_of(steps: Iterable[Any], value: Any) -> str:
    """"messages[0].content". The steps alone cannot tell an index from a key that is a number."""
    place = ""
    for step in steps:
        place += f"[{step}]" if isinstance(value, list) else f".{step}"
        value = value[step] if isinstance(value, list) else value[str(step)]
    return place.lstrip(".")


def _explain(error: jsonschema_rs.ValidationError, path: str) -> Problem:
    """OpenAI's words for a fault; kinds are those of request_schema.py."""
    kind: Any = error.kind
    value: Any = error.instance
    name = kind.name
    if name == "required":
        return _missing(f"{path}.{kind.property}".lstrip("."))
    if name == "type":
        return _wrong_type(path, " or ".join(_TYPES[expected] for expected in kind.types), value)
    if name in ("enum", "const"):
        listed = ", ".join(f"'{option}'" for option in (kind.options if name == "enum" else [kind.expected_value]))
        if not isinstance(value, str):
            return _wrong_type(path, f"one of {listed}", value)
        return _problem("invalid_value", f"Invalid value: '{value[:64]}'. Supported values are: {listed}.", path)
    if name in ("minimum", "maximum"):
        side = "below" if name == "minimum" else "above"
        return _problem("invalid_value", f"Invalid '{path}': {value} is {side} the {name} of {kind.limit}.", path)
    if name == "pattern":
        return _problem("invalid_value", f"'{path}' must {_PATTERNS[kind.pattern]}.", path)
    if name == "propertyNames":
        return _problem("invalid_value", f"A key of '{path}' is over 64 characters.", path)
    if name == "anyOf":
        return _problem("missing_required_parameter", f"'{path}' needs 'file_data' or 'file_id'.", path)
    counted = "characters" if name.endswith("Length") else "entries"
    bound = "at least" if name.startswith("min") else "at most"
    text = f"'{path}' must hold {bound} {kind.limit:,} {counted}, and holds {len(value):,}."
    return _problem("invalid_value", text, path)


def _problem(code: str, message: str, path: str) -> Problem:
    return Problem(code, message, f"body.{path}")


def _missing(path: str) -> Problem:
    return _problem("missing_required_parameter", f"Missing required parameter: '{path}'.", path)


def _wrong_type(path: str, expected: str, value: Any) -> Problem:
    got = _TYPES.get(_JSON_TYPES.get(type(value), ""), type(value).__name__)
    return _problem("invalid_type", f"Invalid type for '{path}': expected {expected}, but got {got} instead.", path)


_JSON_TYPES = {
    dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null",
}  # fmt: skip
_TYPES = {
    "object": "an object", "array": "an array", "string": "a string", "boolean": "a boolean",
    "integer": "an integer", "number": "a number", "null": "null",
}  # fmt: skip
_PATTERNS = {
    shapes.NAME: "be 1 to 64 of the characters a-z, A-Z, 0-9, _ and -",
    shapes.IMAGE_URL: "start with http://, https:// or data:",
}
