"""The shape of request bodies as JSON Schema: OpenAI's 37 chat parameters, embeddings and responses lightly.

Owns: what may be known of a body by itself. Null means absent everywhere; keys, part types and tool types that
OpenAI does not define pass. What depends on a neighbour, and the words, are rules.py's. Data only.
"""

from __future__ import annotations

from typing import Any

ROLES = ("developer", "system", "user", "assistant", "tool", "function")
NAME = "^[A-Za-z0-9_-]{1,64}$"
IMAGE_URL = "^(https?://|data:)"
_INT64 = 2**63

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
NOT_EMPTY: Json = {"type": "string", "minLength": 1}
FLAG: Json = {"type": "boolean"}
POSITIVE: Json = {"type": "integer", "minimum": 1, "maximum": _INT64 - 1}


def _number(low: float, high: float, kind: str = "number") -> Json:
    return {"type": kind, "minimum": low, "maximum": high}


def _one_of(*values: str) -> Json:
    return {"enum": list(values)}


def _object(required: Json, optional: Json | None = None, **more: Any) -> Json:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}, **more}


def _when(key: str, value: str, then: Json) -> Json:
    """`then` holds for objects whose `key` is `value`."""
    return {"if": {"required": [key], "properties": {key: {"const": value}}}, "then": then}


def _array(items: Json, **more: Any) -> Json:
    return {"type": "array", "items": items, **more}


def _by_type(kinds: dict[str, Json]) -> Json:
    """An object whose `type` says which member it needs; other types pass."""
    return _object(
        {"type": TEXT},
        allOf=[_when("type", kind, {"required": [*members], "properties": members}) for kind, members in kinds.items()],
    )


METADATA: Json = {
    "type": "object", "maxProperties": 16, "propertyNames": {"maxLength": 64},
    "additionalProperties": {"type": "string", "maxLength": 512},
}  # fmt: skip

PART = _by_type(
    {
        "text": {"text": TEXT},
        "refusal": {"refusal": TEXT},
        "image_url": {
            "image_url": _object(
                {"url": {"type": "string", "pattern": IMAGE_URL}}, {"detail": _one_of("auto", "low", "high")}
            )
        },
        "input_audio": {"input_audio": _object({"data": NOT_EMPTY, "format": _one_of("wav", "mp3")})},
        "file": {"file": {"type": "object", "anyOf": [{"required": ["file_data"]}, {"required": ["file_id"]}]}},
    }
)
TOOL_CALL = _object(
    {"id": {}},
    allOf=[
        {
            "if": {"properties": {"type": {"const": "function"}}},
            "then": {"required": ["function"], "properties": {"function": _object({"name": TEXT, "arguments": TEXT})}},
        }
    ],
)
_SPEAKS_OTHERWISE = {
    "anyOf": [
        *({"required": [key]} for key in ("function_call", "audio", "refusal")),
        {"required": ["tool_calls"], "properties": {"tool_calls": {"minItems": 1}}},
    ]
}
MESSAGE = _object(
    {"role": _one_of(*ROLES)},
    {"name": TEXT, "content": {"type": ["string", "array"], "minItems": 1, "items": PART}},
    allOf=[
        *(_when("role", role, {"required": ["content"]}) for role in ("developer", "system", "user")),
        _when("role", "tool", {"required": ["tool_call_id", "content"]}),
        _when("role", "function", {"required": ["name"]}),
        _when(
            "role", "assistant",
            {
                "properties": {"tool_calls": _array(TOOL_CALL)},
                "if": {"not": _SPEAKS_OTHERWISE},
                "then": {"required": ["content"]},
            },
        ),
    ],
)  # fmt: skip
FUNCTION = _object({"name": {"type": "string", "pattern": NAME}}, {"strict": FLAG, "parameters": {"type": "object"}})
# Both spellings are in use: members beside `type`, and members under `grammar`.
_GRAMMAR = _object({"syntax": _one_of("lark", "regex"), "definition": NOT_EMPTY})
_CUSTOM_FORMAT = _object(
    {"type": _one_of("text", "grammar")},
    allOf=[
        _when(
            "type", "grammar",
            {"if": {"required": ["grammar"]}, "then": {"properties": {"grammar": _GRAMMAR}}, "else": _GRAMMAR},
        )
    ],
)  # fmt: skip
TOOL = _by_type(
    {
        "function": {"function": FUNCTION},
        "custom": {"custom": _object({"name": {"type": "string", "pattern": NAME}}, {"format": _CUSTOM_FORMAT})},
    }
)
TOOL_CHOICE: Json = {
    "type": ["string", "object"],
    "if": {"type": "string"},
    "then": _one_of("none", "auto", "required"),
    "allOf": [
        *(_when("type", kind, {"required": [kind], "properties": {kind: _object({"name": TEXT})}})
          for kind in ("function", "custom")),
        _when(
            "type", "allowed_tools",
            {"properties": {"allowed_tools": _object({"mode": _one_of("auto", "required"), "tools": _array({})})}},
        ),
    ],
}  # fmt: skip
JSON_SCHEMA = _object(
    {"name": {"type": "string", "pattern": NAME}, "schema": {"type": "object"}}, {"description": TEXT, "strict": FLAG}
)
RESPONSE_FORMAT = _object(
    {"type": _one_of("text", "json_object", "json_schema")},
    allOf=[_when("type", "json_schema", {"required": ["json_schema"], "properties": {"json_schema": JSON_SCHEMA}})],
)

PARAMETERS: dict[str, Json] = {
    "messages": _array(MESSAGE, minItems=1),
    "model": NOT_EMPTY,
    "audio": _object(
        {"voice": {"type": ["string", "object"]}, "format": _one_of("wav", "aac", "mp3", "flac", "opus", "pcm16")}
    ),
    "frequency_penalty": _number(-2, 2),
    "function_call": {
        "type": ["string", "object"],
        "if": {"type": "string"}, "then": _one_of("none", "auto"), "else": _object({"name": TEXT}),
    },
    "functions": _array(FUNCTION, minItems=1, maxItems=128),
    "logit_bias": {"type": "object", "additionalProperties": _number(-100, 100)},
    "logprobs": FLAG,
    "max_completion_tokens": POSITIVE,
    "max_tokens": POSITIVE,
    "metadata": METADATA,
    "modalities": _array(_one_of("text", "audio")),
    "moderation": _object({"model": TEXT}),
    "n": _number(1, 128, "integer"),
    "parallel_tool_calls": FLAG,
    "prediction": _object({"type": _one_of("content"), "content": {"type": ["string", "array"]}}),
    "presence_penalty": _number(-2, 2),
    "prompt_cache_key": TEXT,
    "prompt_cache_options": _object({}, {"ttl": TEXT, "mode": _one_of("implicit", "explicit")}),
    "prompt_cache_retention": _one_of("in_memory", "24h"),
    "reasoning_effort": _one_of("none", "minimal", "low", "medium", "high", "xhigh", "max"),
    "response_format": RESPONSE_FORMAT,
    "safety_identifier": {"type": "string", "maxLength": 64},
    "seed": _number(-_INT64, _INT64 - 1, "integer"),
    "service_tier": _one_of("auto", "default", "flex", "scale", "priority", "fast"),
    "stop": {"type": ["string", "array"], "minItems": 1, "maxItems": 4, "items": TEXT},
    "store": FLAG,
    "stream": FLAG,
    "stream_options": _object({}, {"include_usage": FLAG, "include_obfuscation": FLAG}),
    "temperature": _number(0, 2),
    "tool_choice": TOOL_CHOICE,
    "tools": _array(TOOL),
    "top_logprobs": _number(0, 20, "integer"),
    "top_p": _number(0, 1),
    "user": TEXT,
    "verbosity": _one_of("low", "medium", "high"),
    "web_search_options": _object(
        {},
        {
            "search_context_size": _one_of("low", "medium", "high"),
            "user_location": _object({"type": _one_of("approximate")}),
        },
    ),
}  # fmt: skip

CHAT_BODY = _object({}, PARAMETERS)
EMBEDDINGS_BODY = _object(
    {"model": NOT_EMPTY, "input": {"type": ["string", "array"], "minLength": 1, "minItems": 1}},
    {"encoding_format": _one_of("float", "base64"), "dimensions": POSITIVE, "user": TEXT},
)
RESPONSES_BODY = _object(
    {"model": NOT_EMPTY},  # and `input`, unless there is a stored prompt
    {
        "input": {"type": ["string", "array"]}, "temperature": _number(0, 2), "top_p": _number(0, 1),
        "max_output_tokens": POSITIVE, "metadata": METADATA, "prompt": {},
    },
    **{"if": {"not": {"required": ["prompt"]}}, "then": {"required": ["input"]}},
)  # fmt: skip
