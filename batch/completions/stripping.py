"""Removing what a provider cannot read, by path: ["tools", "function", "strict"], ["messages", "name"]."""

from __future__ import annotations

from typing import Any


def without(value: Any, steps: list[str]) -> Any:
    """`value` itself when the path is not in it, else a copy without it. Lists on the way are walked through."""
    if isinstance(value, list):
        entries = [without(entry, steps) for entry in value]
        return entries if any(new is not old for new, old in zip(entries, value, strict=True)) else value
    if not isinstance(value, dict) or steps[0] not in value:
        return value
    if len(steps) == 1:
        return {key: entry for key, entry in value.items() if key != steps[0]}
    inner = without(value[steps[0]], steps[1:])
    return value if inner is value[steps[0]] else {**value, steps[0]: inner}
