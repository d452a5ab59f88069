"""Removing what a provider cannot read, by dotted path ("tools.function.strict", "messages.name").

Owns: the walk over objects and lists. The given body is never changed: what is touched is copied.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def strip_paths(body: dict[str, Any], paths: Iterable[str]) -> list[str]:
    """Remove the paths from `body` (its top level is changed in place); returns those that were there."""
    removed = []
    for path in paths:
        head, *rest = path.split(".")
        if head not in body:
            continue
        if not rest:
            del body[head]
            removed.append(path)
            continue
        stripped = _without(body[head], rest)
        if stripped is not body[head]:
            body[head] = stripped
            removed.append(path)
    return removed


def _without(value: Any, steps: list[str]) -> Any:
    """`value` itself when the path is not in it, else a copy without it."""
    if isinstance(value, list):
        entries = [_without(entry, steps) for entry in value]
        return entries if any(new is not old for new, old in zip(entries, value, strict=True)) else value
    if not isinstance(value, dict) or steps[0] not in value:
        return value
    if len(steps) == 1:
        return {key: entry for key, entry in value.items() if key != steps[0]}
    inner = _without(value[steps[0]], steps[1:])
    return value if inner is value[steps[0]] else {**value, steps[0]: inner}
