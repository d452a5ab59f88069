"""Error bodies in each vendor's shape, and what each fault says.

Owns: Problem, the shapes, the texts of canned errors. Bodies only: statuses and headers that carry
a wait are chosen here, sent elsewhere.
May not touch: the limiter, sockets. Texts never hold prompts or keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from batch.simulator.config import Fault
from batch.simulator.headers import duration, rfc3339
from batch.simulator.limiter import Refusal


@dataclass(frozen=True, slots=True)
class Problem:
    """An error before it has a shape. `kind` is OpenAI's `type`; `wait_s` the wait that the body may tell."""

    status: int
    kind: str
    message: str
    code: str | None = None
    param: str | None = None
    wait_s: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def error_body(shape: str, problem: Problem) -> dict[str, Any]:
    """The JSON body of `problem` in the family `shape`; raises KeyError on an unknown one."""
    return _SHAPES[shape](problem)


def invalid(message: str, param: str | None = None, *, status: int = 400, code: str | None = None) -> Problem:
    return Problem(status, "invalid_request_error", message, code, param)


def fault_problem(fault: Fault, model: str, now: float) -> Problem:
    """What an HTTP-error fault says."""
    status, kind, code, message = _CANNED[fault.kind]
    wait = fault.retry_after_s if fault.kind in {"rate_limit", "daily", "budget", "overloaded", "unavailable"} else None
    if fault.retry_after == "body_text" and wait is not None:
        message += f" Please try again in {duration(wait)}."
    extra: dict[str, Any] = {}
    if fault.kind == "budget":
        extra = {"budget": {
            "name": "team", "spend_usd": 10.0, "cap_usd": 10.0, "period": "day",
            "period_resets_at": rfc3339(now + fault.retry_after_s),
        }}  # fmt: skip
    if fault.kind == "daily":
        extra = {"quota_id": "GenerateRequestsPerDayPerProjectPerModel"}
    status = fault.status or status
    if fault.kind == "status":
        kind, code, message = _BY_STATUS.get(status, _BY_STATUS[500 if status >= 500 else 400])
    told = wait if fault.retry_after in {"body_text", "retry_info"} else None
    return Problem(status, kind, message.format(model=model), code, None, told, extra)


def refusal_problem(refusal: Refusal, model: str) -> Problem:
    """429 in the words that OpenAI and Groq use: which limit, what was used and asked for."""
    limit = refusal.limit
    if limit.what == "concurrency":
        text = f"Too many concurrent requests: limit {int(limit.amount)}."
        return Problem(429, "rate_limit_error", text, "concurrency_limit_exceeded")
    unit = {1.0: "sec", 60.0: "min", 3600.0: "hour", 86_400.0: "day"}.get(limit.per_s, f"{limit.per_s:g} s")
    short = "".join(word[0] for word in [*limit.what.split("_"), "per", unit]).upper()
    text = (
        f"Rate limit reached for {model} in organization org-simulated on {limit.what.replace('_', ' ')} per {unit} "
        f"({short}): Limit {int(limit.amount)}, Used {math.ceil(refusal.used)}, Requested {int(refusal.requested)}."
    )
    if math.isfinite(refusal.retry_after_s):
        text += f" Please try again in {duration(refusal.retry_after_s)}."
    kind = "requests" if limit.what == "requests" else "tokens"
    extra = {"quota_id": "GenerateRequestsPerDayPerProject"} if limit.per_s >= 86_400 else {}
    wait = refusal.retry_after_s if math.isfinite(refusal.retry_after_s) else None
    return Problem(429, kind, text, "rate_limit_exceeded", None, wait, extra)


_Canned = tuple[int, str, str | None, str]
_RATE = "rate_limit_exceeded"
_CANNED: dict[str, _Canned] = {
    "rate_limit": (429, "requests", _RATE, "Rate limit reached for {model}."),
    "daily": (
        429, "requests", _RATE,
        "Rate limit reached for {model} on requests per day (RPD): Limit 1000, Used 1000, Requested 1.",
    ),
    "quota": (
        429, "insufficient_quota", "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
    ),
    "budget": (402, "budget_exceeded", "budget_exceeded", "Budget exceeded."),
    "bad_key": (401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    "forbidden": (403, "permission_error", "permission_denied", "You have no permission to use {model}."),
    "model_not_found": (
        404, "invalid_request_error", "model_not_found",
        "The model '{model}' does not exist or you do not have access to it.",
    ),
    "context_length": (
        400, "invalid_request_error", "context_length_exceeded",
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens. "
        "Please reduce the length of the messages.",
    ),
    "content_policy": (
        400, "invalid_request_error", "content_policy_violation", "Your request was rejected by the safety system.",
    ),
    "schema_failed": (
        400, "invalid_request_error", "json_validate_failed", "Failed to generate JSON. Please adjust your prompt.",
    ),
    "overloaded": (529, "overloaded_error", "overloaded", "Overloaded."),
    "unavailable": (503, "server_error", "unavailable", "The engine is currently overloaded, please try again later."),
    "error_in_200": (502, "server_error", None, "Provider returned error"),
    "status": (500, "", None, ""),  # said by _BY_STATUS
}  # fmt: skip

_BY_STATUS: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "The request is invalid."),
    402: ("budget_exceeded", "budget_exceeded", "Payment required."),
    408: ("timeout", None, "Request timed out."),
    409: ("conflict", None, "Conflict, try again."),
    422: ("invalid_request_error", None, "Unprocessable request."),
    500: ("server_error", None, "The server had an error while processing your request. Sorry about that!"),
    501: ("not_implemented", None, "Not implemented."),
    503: ("server_error", None, "Service unavailable."),
    529: ("overloaded_error", "overloaded", "Overloaded."),
}


def _flat(problem: Problem) -> dict[str, Any]:
    return {"message": problem.message, "type": problem.kind, "param": problem.param, "code": problem.code}


def _openai(problem: Problem) -> dict[str, Any]:
    body = _flat(problem)
    if "budget" in problem.extra:
        body["budget"] = problem.extra["budget"]
    return {"error": body}


_MX4_CODES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_denied", 404: "not_found_error",
    429: "rate_limit_error", 500: "internal_error", 503: "service_unavailable",
}  # fmt: skip


def _mx4(problem: Problem) -> dict[str, Any]:
    code = "context_length_exceeded" if problem.code == "context_length_exceeded" else None
    details = {"field": problem.param, "issue": problem.message} if problem.param else {"reason": problem.code}
    code = code or _MX4_CODES.get(problem.status, "internal_error")
    return {"error": {"code": code, "message": problem.message, "details": details}}


def _megallm(problem: Problem) -> dict[str, Any]:
    kinds = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(problem.status, "internal_error")
    body: dict[str, Any] = {"message": problem.message, "type": kind}
    return {"error": {**body, "param": problem.param} if problem.param else body}


_ANTHROPIC = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
              500: "api_error", 529: "overloaded_error"}  # fmt: skip


def _anthropic(problem: Problem) -> dict[str, Any]:
    kind = _ANTHROPIC.get(problem.status, "api_error" if problem.status >= 500 else "invalid_request_error")
    return {"error": {"code": kind, "message": problem.message, "type": kind, "param": problem.param}}


_GEMINI = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
           429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}  # fmt: skip


def _gemini(problem: Problem) -> dict[str, Any]:
    """429 always says "quota", and tells day from minute only by quotaId; the wait is a RetryInfo."""
    error: dict[str, Any] = {
        "code": problem.status, "message": problem.message, "status": _GEMINI.get(problem.status, "UNKNOWN"),
    }  # fmt: skip
    if problem.status == 429:
        quota = problem.extra.get("quota_id", "GenerateRequestsPerMinutePerProjectPerModel")
        error["message"] = "You exceeded your current quota, please check your plan and billing details."
        error["details"] = [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": quota}]}
        ]
        if problem.wait_s is not None:
            wait = f"{math.ceil(problem.wait_s)}s"
            error["details"].append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": wait})
    return {"error": error}


def _mistral(problem: Problem) -> dict[str, Any]:
    body: dict[str, Any] = {"object": "error", **_flat(problem)}
    if problem.status == 429:
        return body | {"message": "Rate limit exceeded", "type": "rate_limited", "param": None, "code": "1300"}
    if problem.status == 422:
        detail = {"type": "extra_forbidden", "loc": ["body", problem.param], "msg": problem.message}
        return body | {"message": {"detail": [detail]}, "param": None, "code": None}
    return body


def _openrouter(problem: Problem) -> dict[str, Any]:
    kind = {529: "provider_overloaded", 429: "rate_limit_exceeded"}.get(problem.status, problem.code or problem.kind)
    return {"error": {"code": problem.status, "message": problem.message, "metadata": {"error_type": kind}}}


def _cerebras(problem: Problem) -> dict[str, Any]:
    body = _flat(problem)
    if problem.code == "context_length_exceeded":
        body["message"] = "Please reduce the length of the messages. Current length is 9000 while limit is 8192"
    return body


def _vllm(problem: Problem) -> dict[str, Any]:
    kinds = {400: "BadRequestError", 404: "NotFoundError", 503: "ServiceUnavailableError"}
    return {"error": {**_flat(problem), "type": kinds.get(problem.status, "InternalServerError"),
                      "code": problem.status}}  # fmt: skip


def _llamacpp(problem: Problem) -> dict[str, Any]:
    kind = "exceed_context_size_error" if problem.code == "context_length_exceeded" else problem.kind
    kind = {503: "unavailable_error", 500: "server_error", 501: "not_supported_error"}.get(problem.status, kind)
    return {"error": {"code": problem.status, "message": problem.message, "type": kind}}


def _ollama(problem: Problem) -> dict[str, Any]:
    kind = "api_error" if problem.status >= 500 else "invalid_request_error"
    kind = "not_found_error" if problem.status == 404 else kind
    return {"error": {"message": problem.message, "type": kind, "param": None, "code": None}}


def _tgi(problem: Problem) -> dict[str, Any]:
    kind = {429: "overloaded", 422: "validation", 424: "generation"}.get(problem.status, "unknown")
    return {"error": "Model is overloaded" if problem.status == 429 else problem.message, "error_type": kind}


def _transformers(problem: Problem) -> dict[str, Any]:
    return {"detail": problem.message}


_SHAPES = {
    "openai": _openai, "mx4": _mx4, "megallm": _megallm, "anthropic": _anthropic, "gemini": _gemini,
    "mistral": _mistral, "openrouter": _openrouter, "cerebras": _cerebras, "vllm": _vllm, "llamacpp": _llamacpp,
    "ollama": _ollama, "tgi": _tgi, "transformers": _transformers,
}  # fmt: skip

ERROR_SHAPES = frozenset(_SHAPES)
