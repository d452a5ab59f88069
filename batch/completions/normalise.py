"""Providers' dialects of a chat completion, brought to OpenAI's.

Owns: reading choices from a body, role and finish_reason quirks, fields that strict clients expect, reasoning
tokens counted apart, errors inside a 200. May not touch: meaning; content is never changed here. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def error_in_body(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The error of a body that came with 200 and is no answer, as some gateways send; else None. The body itself may
    be the error: {"object": "error", ...}, {"detail": ...}, {"message": ...}."""
    error, choices = data.get("error"), data.get("choices")
    if error and not choices:
        return error if isinstance(error, dict) else {"message": str(error)}
    is_bare = "object" not in data and ("detail" in data or "message" in data)
    if not choices and (is_bare or data.get("object") == "error"):
        return data
    for choice in choices or ():
        inner = choice.get("error") if isinstance(choice, dict) else None
        if inner and choice.get("finish_reason") == "error":
            return inner if isinstance(inner, dict) else {"message": str(inner)}
    return None


def read_choices(data: Mapping[str, Any], expected: int) -> list[dict[str, Any] | None]:
    """The choices by index, at most `expected`; None where one is missing. Objects are new where mended."""
    given = data.get("choices")
    entries = [choice for choice in given if _is_choice(choice)] if isinstance(given, list) else []
    indices = [choice.get("index") for choice in entries]
    in_range = all(type(index) is int and 0 <= index < expected for index in indices)
    if not in_range or len(set(indices)) < len(indices):
        indices = list(range(len(entries)))
    found: list[dict[str, Any] | None] = [None] * expected
    for place, choice in zip(indices, entries, strict=True):
        if place < expected:
            found[place] = choice
    return found


def mend_choice(choice: dict[str, Any], index: int) -> dict[str, Any]:
    """A copy with the members that OpenAI always sends, at `index`. Unknown members stay."""
    message = dict(choice["message"])
    message["role"] = "assistant"
    message.setdefault("content", None)
    message.setdefault("refusal", None)
    if message.get("tool_calls") == []:
        del message["tool_calls"]
    mended = {**choice, "index": index, "message": message}
    mended.setdefault("logprobs", None)
    if not mended.get("finish_reason"):
        mended["finish_reason"] = "tool_calls" if message.get("tool_calls") else "stop"
    return mended


def mend_usage(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The body's usage, with reasoning tokens among the completion's where the provider counts them beside
    these (the sum tells); None when there is none."""
    usage = data.get("usage")
    if not isinstance(usage, dict):
        return None
    details = usage.get("completion_tokens_details")
    reasoning = details.get("reasoning_tokens") if isinstance(details, dict) else None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(reasoning) is not int or type(prompt) is not int or type(completion) is not int:
        return usage
    if reasoning and prompt + completion + reasoning == usage.get("total_tokens"):
        return {**usage, "completion_tokens": completion + reasoning}
    return usage


def _is_choice(choice: Any) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("message"), dict)
