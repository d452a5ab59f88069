"""Whether one choice is what was asked for, and what to do when it is not.

Owns: Verdict and judge_choice: refusals, truncation, JSON and schema checks, strict tool arguments, stops
cut locally. Content that is valid as it came is not touched. May not touch: calls, budgets. Pure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from batch.completions.cards import SchemaMode
from batch.completions.extract import NotJson, find_json, read_json
from batch.completions.ladder import NATIVE_RUNGS, Shape
from batch.completions.plan import Plan
from batch.completions.schema import SchemaCache
from batch.completions.strict import to_strict, undo
from batch.domain.errors import InvalidRequest


class Ruling(StrEnum):
    KEEP = "keep"
    EMPTY = "empty"          # nothing was said: no content, no tool call, no refusal
    INVALID = "invalid"      # an answer, but not what was asked for
    UNSHAPED = "unshaped"    # not JSON at all though the provider was told to make JSON
    TRUNCATED = "truncated"  # cut off by a token limit before it was complete


@dataclass(slots=True)
class Verdict:
    """`choice` is the one to keep (for KEEP). `raw` is the text before JSON was taken out of it."""

    ruling: Ruling
    choice: dict[str, Any]
    errors: tuple[str, ...] = ()
    raw: str | None = None
    cut: bool = False


def judge_choice(
    choice: dict[str, Any], plan: Plan, rung: SchemaMode | None, schemas: SchemaCache
) -> Verdict:
    message = choice["message"]
    if is_refusal(choice):
        return Verdict(Ruling.KEEP, choice)
    tool_calls = message.get("tool_calls")
    if tool_calls and not (rung == "tool" and plan.shape is not None):
        return _judge_tools(choice, tool_calls, plan, schemas)
    if is_silent(choice):
        return Verdict(Ruling.EMPTY, choice, ("no answer: content is null and no tool is called",))
    cut = _cut_at_stop(choice, plan.stops)
    if plan.shape is None:
        return Verdict(Ruling.KEEP, choice, cut=cut)
    verdict = _judge_shape(choice, plan.shape, rung, schemas)
    verdict.cut = cut
    return verdict


def is_refusal(choice: dict[str, Any]) -> bool:
    return bool(choice["message"].get("refusal")) or choice.get("finish_reason") == "content_filter"


def is_silent(choice: dict[str, Any]) -> bool:
    message = choice["message"]
    if message.get("content") is not None or is_refusal(choice):
        return False
    if any(message.get(kind) for kind in ("tool_calls", "function_call", "audio")):
        return False
    return choice.get("finish_reason") != "length"  # all tokens may have gone into reasoning


def _cut_at_stop(choice: dict[str, Any], stops: tuple[str, ...]) -> bool:
    """Truncate at the first stop string. Logprobs are cut to the text that is left."""
    text = choice["message"].get("content")
    if not stops or not isinstance(text, str):
        return False
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    if not places:
        return False
    kept = text[: min(places)]
    choice["message"]["content"] = kept
    choice["finish_reason"] = "stop"
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict) and isinstance(logprobs.get("content"), list):
        choice["logprobs"] = {**logprobs, "content": _tokens_within(logprobs["content"], len(kept))}
    return True


def _tokens_within(tokens: list[Any], length: int) -> list[Any]:
    kept, so_far = [], 0
    for token in tokens:
        if so_far >= length:
            break
        so_far += len(token.get("token", "")) if isinstance(token, dict) else 0
        kept.append(token)
    return kept


def _judge_shape(
    choice: dict[str, Any], shape: Shape, rung: SchemaMode | None, schemas: SchemaCache
) -> Verdict:
    message = choice["message"]
    given = _text_of(message, rung)
    wants_object = shape.kind == "json_object" or (
        isinstance(shape.document, dict) and shape.document.get("type") == "object"
    )
    try:
        value, text, whole = find_json(given, want_object=wants_object)
    except NotJson as error:
        if choice.get("finish_reason") == "length" and _had_begun(given):
            return Verdict(Ruling.TRUNCATED, choice, ("cut off by a token limit",))
        promised = rung in NATIVE_RUNGS or rung in ("tool", "json_object")
        return Verdict(Ruling.UNSHAPED if promised else Ruling.INVALID, choice, (f"/: {error}",))
    errors, value, text = _check_value(value, text, shape, rung, schemas)
    if errors:
        is_cut = choice.get("finish_reason") == "length"
        return Verdict(Ruling.TRUNCATED if is_cut else Ruling.INVALID, choice, tuple(errors))
    raw = None if whole or rung == "tool" else given
    if text != message.get("content"):
        message["content"] = text
    if rung == "tool" and message.pop("tool_calls", None) and choice.get("finish_reason") != "length":
        choice["finish_reason"] = "stop"
    return Verdict(Ruling.KEEP, choice, raw=raw)


def _had_begun(text: str) -> bool:
    """JSON was on its way, or all tokens went into reasoning; prose without end is no JSON cut off."""
    return not text.strip() or "{" in text or "[" in text


def _text_of(message: dict[str, Any], rung: SchemaMode | None) -> str:
    """The forced tool's arguments are its answer; otherwise content, of which parts are joined."""
    if rung == "tool" and message.get("tool_calls"):
        arguments = (message["tool_calls"][0].get("function") or {}).get("arguments")
        if isinstance(arguments, str):
            return arguments
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _check_value(
    value: Any, text: str, shape: Shape, rung: SchemaMode | None, schemas: SchemaCache
) -> tuple[list[str], Any, str]:
    """Errors, and the value and text to keep: without what the strict form added, where it was used."""
    if shape.kind == "json_object":
        return ([] if isinstance(value, dict) else ["/: the answer is not a JSON object"]), value, text
    schema = schemas.compile(shape.document)
    errors = schema.errors(value, text)
    strict = to_strict(shape.source) if rung == "strict" else None
    if strict is None or not (strict.wrapped or (errors and strict.has_nulls)):
        return errors, value, text
    undone = undo(value, shape.document, strict)
    if undone is value:
        return errors, value, text
    # Not orjson: a model may write integers of any length.
    undone_text = json.dumps(undone, ensure_ascii=False, separators=(",", ":"))
    return schema.errors(undone, undone_text), undone, undone_text


def _judge_tools(
    choice: dict[str, Any], tool_calls: list[Any], plan: Plan, schemas: SchemaCache
) -> Verdict:
    """Arguments of strict tools must be JSON that fits; those of other tools are the caller's business."""
    errors: list[str] = []
    if plan.tool_schemas:
        for index, call in enumerate(tool_calls):
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and function.get("name") in plan.tool_schemas:
                document = plan.tool_schemas[function["name"]]
                errors += _argument_errors(function.get("arguments"), document, index, schemas)
    if not errors:
        return Verdict(Ruling.KEEP, choice)
    is_cut = choice.get("finish_reason") == "length"
    return Verdict(Ruling.TRUNCATED if is_cut else Ruling.INVALID, choice, tuple(errors[:5]))


def _argument_errors(arguments: Any, document: Any, index: int, schemas: SchemaCache) -> list[str]:
    place = f"tool_calls[{index}].function.arguments"
    if not isinstance(arguments, str):
        return [f"{place}: not a string"]
    try:
        value = read_json(arguments)
        errors = schemas.compile(document).errors(value, arguments)
    except (NotJson, InvalidRequest) as error:
        return [f"{place}: {error}"]
    return [f"{place}{error}" for error in errors]
