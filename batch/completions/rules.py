"""What a request body must look like before a token is spent on it.

Owns: the checks of the 37 chat parameters, and light checks of /v1/embeddings and /v1/responses.
Every problem names its place. Unknown keys pass untouched; what a provider can do is plan.py's.
May not touch: cards, I/O. Serves ingest: a plain body costs a few microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from batch.completions.checks import (
    Problem,
    Problems,
    Rule,
    any_of,
    boolean,
    integer,
    number,
    string,
    string_map,
)
from batch.completions.message_rules import check_messages, is_plain_message
from batch.completions.schema import SchemaCache
from batch.completions.tool_rules import (
    check_functions,
    check_response_format,
    check_tool_choice,
    check_tools,
)

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES = "/v1/responses"
ENDPOINTS = (CHAT, EMBEDDINGS, RESPONSES)

_INT64 = 2**63
_PLAIN_NUMBERS = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}
_PLAIN_INTEGERS = {
    "max_tokens": (1, _INT64 - 1),
    "max_completion_tokens": (1, _INT64 - 1),
    "n": (1, 128),
    "seed": (-_INT64, _INT64 - 1),
}


def check_body(body: dict[str, Any], endpoint: str, schemas: SchemaCache | None = None) -> list[Problem]:
    """Every problem of one body, in the body's order; an empty list when it may be sent.

    With `schemas`, each json_schema is compiled (once per distinct schema) and a bad one is reported.
    """
    if endpoint == CHAT:
        return [] if _is_plain(body) else _check_chat(body, schemas)
    problems = Problems()
    _LIGHT[endpoint](body, problems, schemas)
    return problems.found


def misspelt_keys(body: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs (key as written, OpenAI's name) for camelCase spellings. They pass, but do nothing."""
    found = []
    for key in body:
        if key not in RULES and (snake := re.sub(r"(?<=[a-z])([A-Z])", r"_\1", key).lower()) in RULES:
            found.append((key, snake))
    return found


def _is_plain(body: dict[str, Any]) -> bool:
    """True only for a body that is surely right: text messages and numbers in range."""
    if not body.get("model") or "messages" not in body:
        return False
    for key, value in body.items():
        kind = type(value)
        if key == "messages":
            if kind is not list or not value or not all(map(is_plain_message, value)):
                return False
        elif key == "model":
            if kind is not str:
                return False
        elif (bounds := _PLAIN_NUMBERS.get(key)) is not None:
            if (kind is not float and kind is not int) or not bounds[0] <= value <= bounds[1]:
                return False
        elif (bounds := _PLAIN_INTEGERS.get(key)) is not None:
            if kind is not int or not bounds[0] <= value <= bounds[1]:
                return False
        elif key in RULES:
            return False
    return True


def _check_chat(body: dict[str, Any], schemas: SchemaCache | None) -> list[Problem]:
    problems = Problems()
    if body.get("model") is None:
        problems.add("invalid_request", "Model parameter is required.", "model")
    if body.get("messages") is None:
        problems.add("invalid_request", "Messages parameter is required.", "messages")
    if body.get("stream") is True:
        _refuse_stream(problems, "Chat Completions")
    for key, value in body.items():
        rule = RULES.get(key)
        if rule is not None and value is not None:
            rule(value, key, problems)
    if body.get("top_logprobs") is not None and body.get("logprobs") is not True:
        problems.add("invalid_value", "'top_logprobs' needs 'logprobs': true.", "top_logprobs")
    if body.get("response_format") is not None:
        check_response_format(body["response_format"], "response_format", problems, schemas)
    if body.get("tools") is not None:
        check_tools(body["tools"], "tools", problems, schemas)
    if body.get("tool_choice") is not None:
        check_tool_choice(body["tool_choice"], body.get("tools"), problems)
    return problems.found


def _refuse_stream(problems: Problems, api: str) -> None:
    problems.add(
        "streaming_unsupported", f"{api}: Streaming is not supported in the Batch API.", "stream"
    )


def _check_stop(value: Any, path: str, problems: Problems) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list):
        problems.wrong_type(path, "a string or an array of strings", value)
    elif not 1 <= len(value) <= 4:
        problems.add("invalid_value", f"'{path}' holds 1 to 4 strings, not {len(value)}.", path)
    else:
        for index, entry in enumerate(value):
            string()(entry, f"{path}[{index}]", problems)


def _check_logit_bias(value: Any, path: str, problems: Problems) -> None:
    if not isinstance(value, dict):
        problems.wrong_type(path, "an object", value)
        return
    bias = number(-100, 100)
    for token, amount in value.items():
        bias(amount, f"{path}.{token}", problems)


def _check_prediction(value: Any, path: str, problems: Problems) -> None:
    if not isinstance(value, dict):
        problems.wrong_type(path, "an object", value)
        return
    any_of("content")(value.get("type"), f"{path}.type", problems)
    if not isinstance(value.get("content"), str | list):
        problems.wrong_type(f"{path}.content", "a string or an array of parts", value.get("content"))


def _shape(required: dict[str, Rule], optional: dict[str, Rule] | None = None) -> Rule:
    """A rule for an object with the given members; others pass."""

    def check(value: Any, path: str, problems: Problems) -> None:
        if not isinstance(value, dict):
            problems.wrong_type(path, "an object", value)
            return
        for name, rule in required.items():
            if value.get(name) is None:
                problems.missing(f"{path}.{name}")
            else:
                rule(value[name], f"{path}.{name}", problems)
        for name, rule in (optional or {}).items():
            if value.get(name) is not None:
                rule(value[name], f"{path}.{name}", problems)

    return check


def _array_of(entry: Rule, *, at_least: int = 0) -> Rule:
    def check(value: Any, path: str, problems: Problems) -> None:
        if not isinstance(value, list):
            problems.wrong_type(path, "an array", value)
            return
        if len(value) < at_least:
            problems.add("invalid_value", f"'{path}' must hold at least {at_least} entry.", path)
        for index, item in enumerate(value):
            entry(item, f"{path}[{index}]", problems)

    return check


def _check_voice(value: Any, path: str, problems: Problems) -> None:
    if not isinstance(value, str | dict):
        problems.wrong_type(path, "a string or an object", value)


def _check_function_call(value: Any, path: str, problems: Problems) -> None:
    if isinstance(value, str):
        any_of("none", "auto")(value, path, problems)
    else:
        _shape({"name": string()})(value, path, problems)


def _anything(value: Any, path: str, problems: Problems) -> None:
    """Checked elsewhere (with its neighbours), or free."""


RULES: dict[str, Rule] = {
    "messages": check_messages,
    "model": string(at_least=1),
    "audio": _shape({"voice": _check_voice, "format": any_of("wav", "aac", "mp3", "flac", "opus", "pcm16")}),
    "frequency_penalty": number(-2, 2),
    "function_call": _check_function_call,
    "functions": check_functions,
    "logit_bias": _check_logit_bias,
    "logprobs": boolean,
    "max_completion_tokens": integer(1, _INT64 - 1),
    "max_tokens": integer(1, _INT64 - 1),
    "metadata": string_map(16, 64, 512),
    "modalities": _array_of(any_of("text", "audio")),
    "moderation": _shape({"model": string()}),
    "n": integer(1, 128),
    "parallel_tool_calls": boolean,
    "prediction": _check_prediction,
    "presence_penalty": number(-2, 2),
    "prompt_cache_key": string(),
    "prompt_cache_options": _shape({}, {"ttl": string(), "mode": any_of("implicit", "explicit")}),
    "prompt_cache_retention": any_of("in_memory", "24h"),
    "reasoning_effort": any_of("none", "minimal", "low", "medium", "high", "xhigh", "max"),
    "response_format": _anything,
    "safety_identifier": string(at_most=64),
    "seed": integer(-_INT64, _INT64 - 1),
    "service_tier": any_of("auto", "default", "flex", "scale", "priority", "fast"),
    "stop": _check_stop,
    "store": boolean,
    "stream": boolean,
    "stream_options": _shape({}, {"include_usage": boolean, "include_obfuscation": boolean}),
    "temperature": number(0, 2),
    "tool_choice": _anything,
    "tools": _anything,
    "top_logprobs": integer(0, 20),
    "top_p": number(0, 1),
    "user": string(),
    "verbosity": any_of("low", "medium", "high"),
    "web_search_options": _shape(
        {},
        {
            "search_context_size": any_of("low", "medium", "high"),
            "user_location": _shape({"type": any_of("approximate")}),
        },
    ),
}


def _check_embeddings(body: dict[str, Any], problems: Problems, schemas: SchemaCache | None) -> None:
    _require_model(body, problems)
    _check_members(
        body,
        {
            "encoding_format": any_of("float", "base64"),
            "dimensions": integer(1, _INT64 - 1),
            "user": string(),
        },
        problems,
    )
    given = body.get("input")
    if given is None:
        problems.missing("input")
    elif not isinstance(given, str | list):
        problems.wrong_type("input", "a string or an array", given)
    elif not given:
        problems.add("invalid_value", "'input' must not be empty.", "input")
    elif isinstance(given, list) and not _is_embeddable(given):
        problems.wrong_type("input[0]", "strings, token ids, or arrays of token ids throughout", given[0])


def _is_embeddable(given: list[Any]) -> bool:
    if isinstance(given[0], list):
        return all(isinstance(row, list) and row and all(type(t) is int for t in row) for row in given)
    kind = type(given[0])
    return kind in (str, int) and all(type(entry) is kind for entry in given)


def _check_responses(body: dict[str, Any], problems: Problems, schemas: SchemaCache | None) -> None:
    _require_model(body, problems)
    if body.get("stream") is True:
        _refuse_stream(problems, "Responses")
    if body.get("n") is not None:
        problems.add(
            "invalid_request",
            "'/v1/responses' has no 'n'. Use '/v1/chat/completions', where n is guaranteed, or one line per answer.",
            "n",
        )
    if body.get("input") is None and body.get("prompt") is None:
        problems.missing("input")
    elif body.get("input") is not None and not isinstance(body["input"], str | list):
        problems.wrong_type("input", "a string or an array", body["input"])
    _check_members(
        body,
        {
            "temperature": number(0, 2),
            "top_p": number(0, 1),
            "max_output_tokens": integer(1, _INT64 - 1),
            "metadata": string_map(16, 64, 512),
        },
        problems,
    )
    text = body.get("text")
    wanted = text.get("format") if isinstance(text, dict) else None
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema" and schemas is not None:
        problems.check_schema(wanted.get("schema"), "text.format.schema", schemas)


def _require_model(body: dict[str, Any], problems: Problems) -> None:
    if body.get("model") is None:
        problems.add("invalid_request", "Model parameter is required.", "model")
    else:
        string(at_least=1)(body["model"], "model", problems)


def _check_members(body: dict[str, Any], rules: dict[str, Rule], problems: Problems) -> None:
    for key, rule in rules.items():
        if body.get(key) is not None:
            rule(body[key], key, problems)


_LIGHT: dict[str, Callable[[dict[str, Any], Problems, SchemaCache | None], None]] = {
    EMBEDDINGS: _check_embeddings,
    RESPONSES: _check_responses,
}
