"""Finding the JSON in an answer, the same way every time.

Owns: the order of extraction: the whole text; without fences and think blocks; the last complete JSON
value in it (earlier ones may be the user's own text repeated). Duplicate keys, NaN and Infinity are no
JSON here; nothing is repaired. Bounds: 1 MiB, depth 128, work linear in the text. Pure.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 128
_MAX_STARTS = 256

_THINK = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_OPEN_THINK = re.compile(r"\A.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```[a-zA-Z0-9_-]*[ \t]*\r?\n(.*?)\r?\n?[ \t]*```", re.DOTALL)


class NotJson(ValueError):
    """The text holds no complete JSON value; the message says why, for the re-ask."""


class Found(NamedTuple):
    """`text` is exactly the JSON's own characters; `whole` when nothing else stood around it."""

    value: Any
    text: str
    whole: bool


def find_json(text: str, *, want_object: bool = False) -> Found:
    """The JSON of an answer. `want_object`: only an object will do. Raises NotJson."""
    if len(text) > MAX_CHARACTERS:
        return Found(read_json(text), text, whole=True)
    try:
        return Found(read_json(text), text, whole=True)
    except NotJson as error:
        reason = error
    cleaned = _without_thinking(text)
    for candidate in (cleaned, *reversed(_FENCE.findall(cleaned))):
        stripped = candidate.strip().lstrip("\ufeff").strip()
        try:
            return Found(read_json(stripped), stripped, whole=False)
        except NotJson:
            continue
    found = _last_value(cleaned, want_object=want_object)
    if found is None:
        raise reason
    return found


def read_json(text: str) -> Any:
    """One strict JSON value and nothing else. Raises NotJson."""
    try:
        value = _DECODER.decode(text)
        _check_sound(value, text)
    except (ValueError, RecursionError) as error:
        raise NotJson(f"not a JSON value: {str(error)[:120]}") from None
    return value


def _check_sound(value: Any, text: str) -> None:
    """What parses may still nest too deep, or hold half a surrogate pair, which no UTF-8 can carry."""
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise ValueError(f"the JSON nests deeper than {MAX_DEPTH} levels")
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()


def _without_thinking(text: str) -> str:
    """Think blocks are the model talking to itself; some arrive without their opening tag."""
    if "</" not in text:
        return text
    return _OPEN_THINK.sub("", _THINK.sub("", text), count=1)


def _last_value(text: str, *, want_object: bool) -> Found | None:
    """The last complete object or array that no other one holds."""
    openings = "{" if want_object else "{["
    best: Found | None = None
    position, starts, work = 0, 0, 16 * len(text)
    while starts < _MAX_STARTS and work > 0:
        position = min((at for mark in openings if (at := text.find(mark, position)) >= 0), default=-1)
        if position < 0:
            break
        starts += 1
        try:
            value, end = _DECODER.raw_decode(text, position)
            _check_sound(value, text[position:end])
        except (ValueError, RecursionError) as error:
            work -= getattr(error, "pos", len(text)) - position
            position += 1
            continue
        best = Found(value, text[position:end], whole=False)
        position = end
    return best


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            return depth
        level = [
            inner
            for entry in level
            if isinstance(entry, dict | list)
            for inner in (entry.values() if isinstance(entry, dict) else entry)
        ]
    return depth


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant)
