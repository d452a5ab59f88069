"""Tokens as providers report them, read into one shape.

Owns: reading a `usage` object of any dialect into Usage, and writing Usage back in OpenAI's.
May not touch: prices. Source of the dialects: chat completions, /v1/responses, /v1/embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batch.domain.outcome import NO_USAGE, Usage


def read_usage(usage: Any) -> Usage:
    """`usage` as received, or None. Missing and odd values count as 0."""
    if not isinstance(usage, dict):
        return NO_USAGE
    get = usage.get
    prompt = get("prompt_tokens")
    if prompt is None:
        prompt = get("input_tokens")
    completion = get("completion_tokens")
    if completion is None:
        completion = get("output_tokens")
    return Usage(
        _count(prompt),
        _detail(get("prompt_tokens_details") or get("input_tokens_details"), "cached_tokens"),
        _count(completion),
        _detail(get("completion_tokens_details") or get("output_tokens_details"), "reasoning_tokens"),
    )


def write_usage(usage: Usage) -> dict[str, int]:
    """The four numbers, for the line's `batchmill.billed`."""
    return usage._asdict()


def restore_usage(numbers: Mapping[str, Any]) -> Usage:
    return Usage(*(_count(numbers.get(name)) for name in Usage._fields))


def _detail(details: Any, name: str) -> int:
    return _count(details.get(name)) if isinstance(details, dict) else 0


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0
