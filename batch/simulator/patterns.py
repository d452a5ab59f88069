"""Strings that match a regular expression, for the plain patterns that schemas carry.

Owns: walking Python's own parse of the pattern. Look-arounds and back-references are not followed:
such a pattern gives a string that may not match, as a real model's answer may not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from re import _constants as ops  # type: ignore[attr-defined]  # the parse tree has no public door
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

_CATEGORIES = {
    ops.CATEGORY_DIGIT: "0123456789",
    ops.CATEGORY_WORD: "abcdefghijklmnopqrstuvwxyz",
    ops.CATEGORY_SPACE: " ",
    ops.CATEGORY_NOT_DIGIT: "abcxyz",
    ops.CATEGORY_NOT_WORD: "-",
    ops.CATEGORY_NOT_SPACE: "abcxyz",
}
_PRINTABLE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-. "
_EXTRA_REPEATS = 3


def matching_string(pattern: str, draw: Callable[[int], int]) -> str:
    """A string for `pattern`; `draw(k)` gives an integer in [0, k). "value" where Python cannot read it."""
    try:
        return _walk(parser.parse(pattern), draw)
    except (re.error, RecursionError, OverflowError):
        return "value"


def _walk(tree: Any, draw: Callable[[int], int]) -> str:
    return "".join(_one(op, argument, draw) for op, argument in tree)


def _one(op: Any, argument: Any, draw: Callable[[int], int]) -> str:
    if op is ops.LITERAL:
        return chr(argument)
    if op is ops.ANY:
        return _PRINTABLE[draw(52)]
    if op is ops.NOT_LITERAL:
        return "a" if argument != ord("a") else "b"
    if op is ops.IN:
        return _in(argument, draw)
    if op in (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT):
        least, most, tree = argument
        count = least + draw(min(int(most) - least, _EXTRA_REPEATS) + 1)
        return "".join(_walk(tree, draw) for _ in range(min(count, 4096)))
    if op is ops.SUBPATTERN:
        return _walk(argument[3], draw)
    if op is ops.ATOMIC_GROUP:
        return _walk(argument, draw)
    if op is ops.BRANCH:
        branches = argument[1]
        return _walk(branches[draw(len(branches))], draw)
    return ""  # anchors and what is not followed


def _in(items: Any, draw: Callable[[int], int]) -> str:
    if items and items[0][0] is ops.NEGATE:
        banned = set("".join(_members(op, argument) for op, argument in items[1:]))
        allowed = [char for char in _PRINTABLE if char not in banned] or ["~"]
        return allowed[draw(len(allowed))]
    op, argument = items[draw(len(items))]
    members = _members(op, argument)
    return members[draw(len(members))] if members else ""


def _members(op: Any, argument: Any) -> str:
    if op is ops.LITERAL:
        return chr(argument)
    if op is ops.RANGE:
        low, high = argument
        return "".join(chr(code) for code in range(low, min(high, low + 127) + 1))
    if op is ops.CATEGORY:
        return _CATEGORIES.get(argument, "a")
    return ""
