"""One line of an input file: its envelope, and where its body's bytes stand.

Owns: custom_id, method, url, body and the line's own `batchmill` object; codes and messages of what is
wrong with them (as OpenAI words them). The body is kept as the bytes that were sent, so that big
integers and number spellings survive; where a top-level key that decides something stands twice, the
last one counts and the body is written anew, so that checks and providers see the same request.
May not touch: what a body means (completions.rules), storage.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec
import orjson

CUSTOM_ID_MAX = 512
_DECISIVE = re.compile(rb'"(?:model|stream|messages)"')


class InputLine(NamedTuple):
    """A line with a sound envelope. `override` is its `batchmill` object, e.g. {"provider": "xai"}."""

    custom_id: str
    body: dict[str, Any]
    body_bytes: bytes
    model: str | None
    override: dict[str, Any]


class LineProblem(NamedTuple):
    """What is wrong with a line, as one entry of `errors.data`. `custom_id` where it could be read."""

    code: str
    message: str
    param: str | None
    custom_id: str | None = None


UNREADABLE = "invalid_json_line"


class _Envelope(msgspec.Struct, gc=False):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw
    batchmill: dict[str, Any] = {}


_decode = msgspec.json.Decoder(_Envelope).decode
_NO_OVERRIDE: dict[str, Any] = {}


def parse_line(raw: bytes, endpoint: str) -> InputLine | LineProblem:
    """Read one line of a batch for `endpoint`; never raises."""
    try:
        envelope = _decode(raw)
        body_bytes = bytes(envelope.body)
        body = orjson.loads(body_bytes)
    except (msgspec.DecodeError, orjson.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return _explain(raw, endpoint)
    custom_id = envelope.custom_id
    if (
        type(body) is not dict
        or envelope.method != "POST"
        or envelope.url != endpoint
        or not custom_id
        or len(custom_id) > CUSTOM_ID_MAX
        or "\0" in custom_id
    ):
        return _explain(raw, endpoint)
    found = _DECISIVE.findall(body_bytes)
    if len(set(found)) < len(found) and any(found.count(key) > 1 and key[1:-1].decode() in body for key in found):
        body_bytes = orjson.dumps(body)
    model = body.get("model")
    return InputLine(
        custom_id, body, body_bytes, model if type(model) is str else None, envelope.batchmill or _NO_OVERRIDE
    )


def read_custom_id(raw: bytes) -> str | None:
    """The custom_id of a line, if one can be read whatever else is wrong with it."""
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return _custom_id(line) if isinstance(line, dict) else None


def read_body(raw: bytes) -> bytes:
    """The body's bytes of a line that passed parse_line before (large bodies stay in the input blob)."""
    return bytes(_decode(raw).body)


def merge_defaults(body: dict[str, Any], body_bytes: bytes, defaults: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Body and bytes with `options.defaults` added where the body has no such key.

    Merged at each reading and not stored: the rows stay as small as the input. The bytes are spliced,
    so what the user wrote stays as written.
    """
    missing = {key: value for key, value in defaults.items() if key not in body}
    if not missing:
        return body, body_bytes
    addition = orjson.dumps(missing)[1:-1]
    inner = body_bytes.strip()[1:-1]
    spliced = b"{%b,%b}" % (inner, addition) if body else b"{%b}" % addition
    return {**body, **missing}, spliced


def _explain(raw: bytes, endpoint: str) -> LineProblem:
    """The slow path: what exactly is wrong."""
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return _unreadable(_why_unreadable(raw, error))
    if not isinstance(line, dict):
        return _unreadable(_NOT_ONE_OBJECT)
    return _explain_custom_id(line) or _explain_rest(line, endpoint, _custom_id(line))


def _explain_custom_id(line: dict[str, Any]) -> LineProblem | None:
    given = line.get("custom_id")
    if given is None or given == "":
        return _missing("custom_id", None)
    if not isinstance(given, str):
        code = "invalid_type"
        message = f"Invalid type for 'custom_id': expected a string, but got {json_kind(given)} instead."
    elif len(given) > CUSTOM_ID_MAX:
        code = "invalid_value"
        message = f"Invalid 'custom_id': expected at most {CUSTOM_ID_MAX} characters, got {len(given)}."
    elif "\0" in given:
        code, message = "invalid_value", "Invalid 'custom_id': it must not contain NUL."
    else:
        return None
    return LineProblem(code, message, "custom_id")


def _explain_rest(line: dict[str, Any], endpoint: str, custom_id: str | None) -> LineProblem:
    for name in ("method", "url", "body"):
        if line.get(name) is None:
            return _missing(name, custom_id)
    if line["method"] != "POST":
        return LineProblem("invalid_method", "The method of each request must be 'POST'.", "method", custom_id)
    if line["url"] != endpoint:
        message = "The URL provided for this request does not match the batch endpoint."
        return LineProblem("invalid_url", message, "url", custom_id)
    for name in ("body", "batchmill"):
        if not isinstance(line.get(name, {}), dict):
            message = f"Invalid type for '{name}': expected an object, but got {json_kind(line[name])} instead."
            return LineProblem("invalid_type", message, name, custom_id)
    return _unreadable("It is nested too deeply.")  # the two parsers disagree


def _unreadable(why: str) -> LineProblem:
    return LineProblem(UNREADABLE, f"This line is not parseable as valid JSON. {why}", None)


_NOT_ONE_OBJECT = "A JSONL file holds one object per line."


def _why_unreadable(raw: bytes, error: orjson.JSONDecodeError) -> str:
    """The usual slips by name; else where the parser stopped and why. Never the text itself."""
    try:
        text = raw.decode().strip()
    except UnicodeDecodeError as fault:
        return f"Byte {fault.start + 1} is not UTF-8."
    if text[:1] == "[":
        return _NOT_ONE_OBJECT
    if text[-1:] == ",":
        return "It ends in a comma."
    if text[:1] == "{" and text[-1:] != "}":
        return "It does not end in }; is the object spread over several lines, or cut off?"
    return f"Column {error.colno}: {error.msg}."


def _custom_id(line: dict[str, Any]) -> str | None:
    given = line.get("custom_id")
    usable = isinstance(given, str) and 0 < len(given) <= CUSTOM_ID_MAX and "\0" not in given
    return given if usable else None


def _missing(name: str, custom_id: str | None) -> LineProblem:
    return LineProblem("missing_required_parameter", f"Missing required parameter: '{name}'.", name, custom_id)


def json_kind(value: Any) -> str:
    """ "a string", "an object", …: what a JSON value is, for people."""
    kinds = {list: "an array", dict: "an object", str: "a string", bool: "a boolean", int: "an integer"}
    return "null" if value is None else kinds.get(type(value), "a number")
