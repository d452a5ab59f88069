"""Errors as OpenAI clients read them.

Owns: the one table from error to HTTP status, the envelope, and the wording of what the framework
finds wrong (unknown path, method, body). Every error leaves the server through `error_response`.
Messages name the place and the mend; they never hold bodies, keys or driver details.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from batch.domain import errors
from batch.domain.errors import BatchmillError
from batch.domain.line import json_kind
from batch.storage.engine import is_passing

STATUS: dict[type[BatchmillError], int] = {
    errors.InvalidRequest: 400,
    errors.InvalidValue: 400,
    errors.InvalidConfiguration: 500,
    errors.UnknownModel: 404,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Forbidden: 403,
    errors.Unauthenticated: 401,
    errors.TooLarge: 413,
    errors.RateLimited: 429,
    errors.Unavailable: 503,
    BatchmillError: 500,
}

# Codes that only repeat the status, and a request without a key: OpenAI sends null there.
_SILENT_CODES = {"", "invalid_request", "not_found", "conflict", "forbidden", "too_large"}
_NEVER_RETRY = {409, 500, 501}
_SERVER_TEXT = "The server had an error while processing your request. Sorry about that!"


def status_of(error: BatchmillError) -> int:
    """The status of the error's nearest class in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The envelope with all four keys; `x-should-retry: false` where a retry cannot help."""
    body = {"error": {"message": message, "type": _kind(status), "param": param, "code": code}}
    sent = dict(headers or {})
    if status in _NEVER_RETRY:
        sent["x-should-retry"] = "false"
    return Response(orjson.dumps(body), status, sent, media_type="application/json")


def respond_to(error: BaseException) -> Response:
    """The answer to any exception; unknown ones say nothing of themselves."""
    if isinstance(error, BatchmillError):
        return _own_error(error)
    if isinstance(error, DBAPIError) and is_passing(error):
        return error_response(503, "The database does not answer; try again.", code="unavailable")
    return error_response(500, _SERVER_TEXT, code="internal_error")


def install_handlers(app: FastAPI) -> None:
    """Replace every default answer of the framework; api.frame answers what routes raise."""
    app.add_exception_handler(RequestValidationError, _on_invalid_body)
    app.add_exception_handler(HTTPException, _on_http_exception)


def _own_error(error: BatchmillError) -> Response:
    status = status_of(error)
    headers: dict[str, str] = {}
    message, code = error.message, None if error.code in _SILENT_CODES else error.code
    if isinstance(error, errors.RateLimited):
        wait = max(0.0, error.retry_after_s)
        headers = {"retry-after": str(math.ceil(wait)), "retry-after-ms": str(math.ceil(wait * 1000))}
    if isinstance(error, errors.Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, errors.InvalidConfiguration):
        message = _SERVER_TEXT  # its text is for the operator, who finds it in the log
    return error_response(status, message, param=error.param, code=code, headers=headers)


def _kind(status: int) -> str:
    if status == 429:
        return "requests"
    return "server_error" if status >= 500 else "invalid_request_error"


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    place = f"({request.method} {request.url.path[:200]})"
    if error.status_code == 404:
        return error_response(404, f"Invalid URL {place}")
    if error.status_code == 405:
        message = f"Invalid method for URL {place}"
        return error_response(405, message, code="method_not_supported", headers=error.headers)
    return error_response(error.status_code, HTTPStatus(error.status_code).phrase, headers=error.headers)


async def _on_invalid_body(_request: Request, error: Exception) -> Response:
    """400 for the first problem that pydantic found, worded as OpenAI words it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    param = ".".join(place) or None
    message, code = _wording(first, param)
    return error_response(400, message, param=param, code=code)


def _wording(problem: Mapping[str, Any], param: str | None) -> tuple[str, str | None]:
    kind = str(problem["type"])
    context = problem.get("ctx") or {}
    given = problem.get("input")
    if kind == "missing" and param is None:
        return "The request needs a JSON body.", None
    if kind == "missing":
        return f"Missing required parameter: '{param}'.", "missing_required_parameter"
    if kind == "json_invalid":
        return "We could not parse the JSON body of your request.", None
    if kind in ("literal_error", "enum"):
        return f"Invalid value: '{str(given)[:100]}'. Supported values are: {context['expected']}.", "invalid_value"
    if kind == "extra_forbidden":
        return f"Unknown parameter: '{param}'.", "unknown_parameter"
    if kind.endswith(("_type", "_parsing", "_from_float")):
        wanted = _WANTED.get(kind.rpartition("_")[0], "an object")
        return f"Invalid type for '{param}': expected {wanted}, but got {json_kind(given)} instead.", "invalid_type"
    if param is None:
        return "The request body must be a JSON object.", None
    return f"Invalid '{param}': {str(problem['msg']).removeprefix('Value error, ')}.", "invalid_value"


_WANTED = {
    "string": "a string",
    "int": "an integer",
    "int_from": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "list": "an array",
    "dict": "an object",
    "model_attributes": "an object",
    "model": "an object",
}
