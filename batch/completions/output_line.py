"""The lines of output and error files.

Owns: their exact shape and key order (OpenAI's, then the extra `batchmill`), and their encoding: UTF-8
with U+0085, U+2028 and U+2029 escaped, since clients split lines there, or all ASCII. A provider's
body is spliced in as it came. Lines are bytes without the final newline. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

_LINE_BREAKS = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))
_NON_ASCII = re.compile("[^\x00-\x7f]+")


def response_line(
    line_id: str,
    custom_id: str,
    body: bytes,
    note: Mapping[str, Any],
    *,
    request_id: str,
    status: int = 200,
    output_ascii: bool = False,
) -> bytes:
    """A line of the output file, or of the error file for an upstream HTTP error (`error` is null there too). `body`
    is one JSON object in UTF-8, spaces and newlines allowed."""
    line = b'{"id": "%b", "custom_id": %b, "response": {"status_code": %d, "request_id": %b, "body": %b}, ' % (
        line_id.encode(),
        orjson.dumps(custom_id),
        status,
        orjson.dumps(request_id),
        body.replace(b"\n", b" ").replace(b"\r", b" "),  # in valid JSON white space between tokens
    )
    return _encode(line + b'"error": null, "batchmill": %b}' % orjson.dumps(note), output_ascii)


def own_error_line(
    line_id: str,
    custom_id: str,
    code: str,
    message: str,
    note: Mapping[str, Any] | None = None,
    *,
    output_ascii: bool = False,
) -> bytes:
    """A line of the error file for our own failures, expiry and cancelling: `response` null."""
    error = b'{"code": %b, "message": %b}' % (orjson.dumps(code), orjson.dumps(message))
    line = b'{"id": "%b", "custom_id": %b, "response": null, "error": %b' % (
        line_id.encode(),
        orjson.dumps(custom_id),
        error,
    )
    if note:
        line += b', "batchmill": ' + orjson.dumps(note)
    return _encode(line + b"}", output_ascii)


def copied_line(line: str, line_id: str, custom_id: str, *, output_ascii: bool = False) -> bytes:
    """A recorded line's answer once more, under names of its own (`options.dedupe`)."""
    entry = orjson.loads(line)
    entry |= {"id": line_id, "custom_id": custom_id, "batchmill": {"copy_of": entry["custom_id"]}}
    return _encode(orjson.dumps(entry), output_ascii)


def _encode(line: bytes, output_ascii: bool) -> bytes:
    if line.isascii():
        return line
    if output_ascii:
        return _NON_ASCII.sub(lambda found: json.dumps(found.group())[1:-1], line.decode()).encode()
    for raw, escaped in _LINE_BREAKS:
        line = line.replace(raw, escaped)
    return line
