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
    if type(usage) is not dict:
        return NO_USAGE
    get = usage.get
    prompt = get("prompt_tokens")
    if prompt is None:
        prompt = get("input_tokens")
    completion = get("completion_tokens")
    if completion is None:
        completion = get("output_tokens")
    of_prompt = get("prompt_tokens_details") or get("input_tokens_details")
    of_completion = get("completion_tokens_details") or get("output_tokens_details")
    return Usage(
        prompt if type(prompt) is int and prompt > 0 else 0,
        _count(of_prompt.get("cached_tokens")) if type(of_prompt) is dict else 0,
        completion if type(completion) is int and completion > 0 else 0,
        _count(of_completion.get("reasoning_tokens")) if type(of_completion) is dict else 0,
    )


def write_usage(usage: Usage) -> dict[str, int]:
    """The four numbers, for the line's `batchmill.billed`."""
    return usage._asdict()


def restore_usage(numbers: Mapping[str, Any]) -> Usage:
    return Usage(*(_count(numbers.get(name)) for name in Usage._fields))


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0
