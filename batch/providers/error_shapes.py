"""What a provider's error body says, whatever its shape.

Owns: ErrorView and reading it from the shapes of PROVIDER pages: OpenAI's, MX4's (type in code), MegaLLM's
(no code), Gemini's list, Mistral's flat one, TGI's, FastAPI's detail, Modelux's budget, plain text, HTML.
May not touch: what kind of failure it is (classify.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

MAX_TEXT = 4_000
MAX_BODY_BYTES = 64 * 1024

_TAGS = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ErrorView:
    """`names` are type, code and status words in lower case; `raw` is the parsed body, {} when it is no JSON."""

    message: str
    type: str | None = None
    code: str | None = None
    param: str | None = None
    names: frozenset[str] = frozenset()
    inner_status: int | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)

    def to_body(self) -> dict[str, Any]:
        """OpenAI's error object, with whatever else the provider said beside it."""
        error = self.raw.get("error")
        extra = dict(error) if isinstance(error, dict) else {}
        kept = {name: value for name, value in self.raw.items() if name != "error"}
        core = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": extra | core} | kept


def read_error(body: bytes, status: int | None = None) -> ErrorView:
    """An ErrorView of any body; never raises. `body` is scrubbed already; without `status` it came inside a 200."""
    try:
        data = orjson.loads(body[:MAX_BODY_BYTES] if len(body) > MAX_BODY_BYTES else body)
    except orjson.JSONDecodeError:
        return ErrorView(message=_plain_text(body, status))
    if isinstance(data, list) and data:
        data = data[0]
    if not isinstance(data, dict):
        return ErrorView(message=_clip(str(data)) if data else f"HTTP {status}")
    error = data.get("error")
    source = error if isinstance(error, dict) else data
    kind = _word(source.get("type")) or _word(data.get("error_type"))
    code = _word(source.get("code"))
    words = (kind, code, _word(source.get("status")), _word(source.get("error_type")))
    return ErrorView(
        message=_message(data, error, status),
        type=kind,
        code=code,
        param=_param(source, data),
        names=frozenset(word.lower() for word in (*words, *_metadata_words(source)) if word),
        inner_status=_inner_status(source),
        raw=data,
    )


def _message(data: dict[str, Any], error: Any, status: int | None) -> str:
    if isinstance(error, dict):
        text = error.get("message") or error.get("detail")
    else:
        text = error or data.get("message") or data.get("detail") or data.get("msg")
    if isinstance(text, list):
        text = "; ".join(_validation_text(item) for item in text[:5])
    elif isinstance(text, dict):
        text = text.get("message") or orjson.dumps(text).decode()
    return _clip(str(text)) if text else f"HTTP {status}" if status else "error without a message"


def _validation_text(item: Any) -> str:
    """One entry of FastAPI's list: {"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}."""
    if not isinstance(item, dict):
        return str(item)
    place = ".".join(str(part) for part in item.get("loc", ()) if part != "body")
    return f"{place}: {item.get('msg', '')}" if place else str(item.get("msg", item))


def _param(source: dict[str, Any], data: dict[str, Any]) -> str | None:
    named = source.get("param")
    details = source.get("details")
    if not named and isinstance(details, dict):
        named = details.get("field")
    entries = data.get("detail")
    if not named and isinstance(entries, list) and entries and isinstance(entries[0], dict):
        named = ".".join(str(part) for part in entries[0].get("loc", ()) if part != "body")
    return named if isinstance(named, str) and named else None


def _metadata_words(source: dict[str, Any]) -> Iterable[str | None]:
    """OpenRouter puts its canonical kind into metadata; Azure puts the filter's into innererror."""
    for name in ("metadata", "innererror"):
        inner = source.get(name)
        if isinstance(inner, dict):
            yield _word(inner.get("error_type"))
            yield _word(inner.get("code"))


def _inner_status(source: dict[str, Any]) -> int | None:
    for name in ("code", "status", "status_code"):
        value = source.get(name)
        number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) == 3 else value
        if type(number) is int and 400 <= number <= 599:
            return number
    return None


def _word(value: Any) -> str | None:
    if isinstance(value, str) and value:
        return value[:100]
    return str(value) if type(value) is int else None


def _plain_text(body: bytes, status: int | None) -> str:
    text = _TAGS.sub(" ", body[:MAX_BODY_BYTES].decode("utf-8", "replace"))
    text = " ".join(text.split())[:300]
    return f"HTTP {status}: {text}" if text and status else text or f"HTTP {status} without a body"


def _clip(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " …"
