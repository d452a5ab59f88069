"""The rungs of structured output, from a provider's own guarantee down to a plain prompt.

Owns: which rung a request starts on, which comes next, and how each rung changes the body.
Rungs: strict → schema → tool → json_object → prompt. Every answer is validated afterwards, whatever
the rung promised (judge.py). Stepping down spends no schema retry. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import orjson

from batch.completions.cards import Card, SchemaMode, Support
from batch.completions.strict import to_strict

RUNGS: tuple[SchemaMode, ...] = ("strict", "schema", "tool", "json_object", "prompt")
NATIVE_RUNGS = frozenset({"strict", "schema"})
TOOL_NAME = "answer"
_UNSERVED = (Support.IGNORED, Support.REJECTED)


@dataclass(frozen=True, slots=True)
class Shape:
    """What the caller wants each answer to look like; `source` is the schema as JSON text."""

    kind: Literal["json_schema", "json_object"]
    document: Any = None
    source: bytes = b"{}"
    name: str = "answer"
    description: str | None = None
    strict: bool = False


def read_shape(response_format: Any) -> Shape | None:
    """None for text, and for formats that OpenAI does not define (they pass as given)."""
    if not isinstance(response_format, dict):
        return None
    if response_format.get("type") == "json_object":
        return Shape("json_object")
    wanted = response_format.get("json_schema")
    if response_format.get("type") != "json_schema" or not isinstance(wanted, dict):
        return None
    document = wanted.get("schema", {})
    return Shape(
        "json_schema",
        document,
        orjson.dumps(document),
        wanted.get("name") or "answer",
        wanted.get("description"),
        wanted.get("strict") is True,
    )


def next_rung(
    card: Card, rung: SchemaMode | None, shape: Shape, *, has_tools: bool, ignored: bool = False
) -> SchemaMode | None:
    """The highest rung below `rung` (None: of all) that this card serves for this line; None under "prompt".
    `ignored`: the provider did not look at the format at all."""
    below = RUNGS[RUNGS.index(rung) + 1 :] if rung else RUNGS
    served = (name for name in below if _serves(card, name, shape, has_tools=has_tools))
    return next((name for name in served if not (ignored and name in NATIVE_RUNGS)), None)


def _serves(card: Card, rung: SchemaMode, shape: Shape, *, has_tools: bool) -> bool:
    if rung == "prompt" or (has_tools and not card.json_with_tools):
        return rung == "prompt"
    formats_served = card.support.get("response_format") not in _UNSERVED
    if rung == "json_object":
        return formats_served and card.is_native("json_object")
    if shape.kind == "json_object":
        return False
    if rung == "tool":
        return card.schema_mode == "tool" and not has_tools and card.of("tools") not in _UNSERVED
    if not formats_served or card.of("json_schema") in _UNSERVED:
        return False
    if rung == "strict":
        return card.schema_mode == "strict" and to_strict(shape.source) is not None
    return card.schema_mode in NATIVE_RUNGS or (card.schema_mode is None and card.is_native("json_schema"))


def is_emulated(shape: Shape, rung: SchemaMode) -> bool:
    return rung == "prompt" if shape.kind == "json_object" else rung not in NATIVE_RUNGS


def keeps_as_given(card: Card, shape: Shape, rung: SchemaMode) -> bool:
    """True when this rung sends the caller's own response_format unchanged."""
    if rung == "strict":
        converted = to_strict(shape.source)
        return shape.strict and converted is not None and converted.same
    if rung == "schema":
        return not (shape.strict and card.schema_mode == "strict")
    return rung == "json_object" and shape.kind == "json_object"


def apply_rung(body: dict[str, Any], card: Card, shape: Shape, rung: SchemaMode) -> None:
    """Change `body` in place. It holds no response_format; its messages list may be replaced, not changed."""
    if rung == "json_object" and shape.kind == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif rung in NATIVE_RUNGS:
        body["response_format"] = _schema_format(card, shape, rung)
    elif rung == "tool":
        body["tools"] = [_answer_tool(shape)]
        body["tool_choice"] = {"type": "function", "function": {"name": TOOL_NAME}}
    else:
        if rung == "json_object":
            body["response_format"] = {"type": "json_object"}
        body["messages"] = instruct(body["messages"], instruction(shape))


def instruction(shape: Shape) -> str:
    if shape.kind == "json_object":
        return "Answer with one JSON object only: no other text and no code fence."
    about = f" ({shape.description})" if shape.description else ""
    return (
        f"Answer with one JSON value only{about}: no other text and no code fence. "
        f"It must be valid against this JSON Schema:\n{shape.source.decode()}"
    )


def instruct(messages: list[Any], text: str) -> list[Any]:
    """The instruction ends the first system message, so that lines with one prompt share a prefix."""
    first = messages[0] if messages else None
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        content = first.get("content")
        if isinstance(content, str):
            return [{**first, "content": f"{content}\n\n{text}"}, *messages[1:]]
        if isinstance(content, list):
            return [{**first, "content": [*content, {"type": "text", "text": text}]}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _schema_format(card: Card, shape: Shape, rung: SchemaMode) -> dict[str, Any]:
    wanted: dict[str, Any] = {"name": shape.name}
    if shape.description is not None:
        wanted["description"] = shape.description
    converted = to_strict(shape.source) if rung == "strict" else None
    if converted is not None:
        wanted["schema"] = orjson.Fragment(converted.source)
        wanted["strict"] = True
    else:
        wanted["schema"] = orjson.Fragment(shape.source)
        # Where the strict form could not be used, strict would be a 400: the schema is a wish, and we check.
        wanted["strict"] = shape.strict and card.schema_mode != "strict"
    return {"type": "json_schema", "json_schema": wanted}


def _answer_tool(shape: Shape) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": TOOL_NAME,
            "description": shape.description or "Give the answer.",
            "parameters": orjson.Fragment(shape.source),
        },
    }
