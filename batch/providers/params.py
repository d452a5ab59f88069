"""Which body key a 400 complains about, where that key is one that can be left out.

Owns: reading a parameter's name from error.param and from the sentences providers use.
May not touch: what follows (learned.py notes it, the plan is made anew without the key).
"""

from __future__ import annotations

import re

from batch.providers.error_shapes import ErrorView
from batch.providers.presets import BODY_KEYS

# Values that are merely wrong are the line's fault; only these words say that the key itself is unknown.
_UNSUPPORTED = re.compile(
    r"unsupported|(?:not|n't) (?:yet )?(?:be )?(?:supported|support|permitted|allowed|implemented|recognized)"
    r"|unknown|unrecognized|unexpected|extra (?:inputs|fields|arg)|no longer supported|additional propert"
    r"|must be (?:at most )?1\b|only 1 (?:choice|completion)|not available (?:for|with|on)|incompatible",
    re.IGNORECASE,
)
_CODES = frozenset(
    {"unsupported_parameter", "unsupported_value", "unknown_parameter", "extra_forbidden", "unrecognized_parameter"}
)
_CAMEL = {re.sub(r"_(\w)", lambda m: m[1].upper(), key): key for key in BODY_KEYS if "_" in key}
_KEYS = sorted((*BODY_KEYS, *_CAMEL), key=len, reverse=True)
_QUOTED = re.compile(r"[\"'`‘“\[{(]\s*(?:body\.)?(" + "|".join(_KEYS) + r")(?:\.\w+)*\s*[\"'`’”\]}),:]")
_NEAR = re.compile(
    r"\b(?:parameter|field|argument|property|key|option|input)s?\b[^\w\n]{1,3}(" + "|".join(_KEYS) + r")\b"
    r"|\b(" + "|".join(_KEYS) + r")\b[^\w\n]{1,3}"
    r"(?:parameter|field|argument|property|is not|is un|are not|does not|must be|isn't|:)"
    r"|(?:supported|unsupported|model|unexpected|unknown|permitted)\b[^\n]{0,40}: ?(" + "|".join(_KEYS) + r")\b"
)
_DISTINCT = re.compile(r"\b(" + "|".join(key for key in _KEYS if "_" in key or key in _CAMEL) + r")\b")


def demotable_param(view: ErrorView) -> str | None:
    """The OpenAI key (snake_case) that the error says is not supported; None when it says no such thing."""
    said = _UNSUPPORTED.search(view.message) is not None or bool(view.names & _CODES)
    if not said:
        return None
    if view.param:
        key = _known(view.param)
        return key if key is not None else None if _is_nested(view.param) else _named_in(view.message)
    return _named_in(view.message)


def _named_in(message: str) -> str | None:
    for pattern in (_QUOTED, _NEAR, _DISTINCT):
        match = pattern.search(message)
        if match:
            return _known(next(group for group in match.groups() if group))
    return None


def _known(name: str) -> str | None:
    """A body key for "seed", "presencePenalty", "response_format.json_schema"; None for nested places."""
    path = name.removeprefix("body.")
    root = path.split(".")[0].split("[")[0]
    key = _CAMEL.get(root, root)
    if key not in BODY_KEYS or key == "stream":
        return None
    return key if root == path or key in ("response_format", "stream_options") else None


def _is_nested(name: str) -> bool:
    return "." in name or "[" in name
