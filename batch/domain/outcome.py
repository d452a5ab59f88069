"""What one upstream call came to, as a value.

Owns: Success and Failure, the kinds of failure, usage. Produced by providers/, read by the retry
decision (domain.retry), the executor and the recorder.
May not touch: HTTP, JSON schema, storage. Holds no secrets: provider texts are scrubbed before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple


class FailureKind(StrEnum):
    """Why a call gave no usable answer. One row each in domain.retry."""

    CONNECT = "connect"                      # refused, DNS, TLS: nothing was sent
    DISCONNECT = "disconnect"                # a reused connection closed, a read error
    TIMEOUT = "timeout"                      # our own time limit on the call
    INVALID_REQUEST = "invalid_request"      # 400/422 that names no known cause
    UNSUPPORTED_PARAM = "unsupported_param"  # 400/422 naming a parameter that can be demoted
    BAD_KEY = "bad_key"                      # 401, or 400 with an api-key message
    FORBIDDEN = "forbidden"                  # 403 on the model, region or team
    MODEL_NOT_FOUND = "model_not_found"      # 404 on the model
    CONTEXT_LENGTH = "context_length"        # the prompt does not fit
    CONTENT_POLICY = "content_policy"        # refused by a filter with a 4xx
    SCHEMA_FAILED = "schema_failed"          # the provider's own structured-output check failed
    QUOTA = "quota"                          # insufficient quota, billing: the key, not the line
    BUDGET = "budget"                        # 402 with a budget and a reset time
    RATE_LIMIT = "rate_limit"                # 429: requests or tokens per second/minute
    RATE_DAILY = "rate_daily"                # 429: a daily (or longer) window is used up
    RATE_CONCURRENCY = "rate_concurrency"    # 429: too many at once
    RATE_DYNAMIC = "rate_dynamic"            # 429: ramping too fast for an adaptive limit
    TOO_MANY_TOKENS = "too_many_tokens"      # 429 whose request alone exceeds the limit
    SERVER_ERROR = "server_error"            # 500, 502, 504, 52x
    UNAVAILABLE = "unavailable"              # 503: queue full, loading
    OVERLOADED = "overloaded"                # 529, provider_overloaded
    CONFLICT = "conflict"                    # 408, 409
    NOT_IMPLEMENTED = "not_implemented"      # 501
    BAD_ANSWER = "bad_answer"                # 200 that is not a chat completion, too large, truncated body


class Usage(NamedTuple):
    """Tokens, in OpenAI's counting. `input_tokens` includes cached, `output_tokens` includes reasoning."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:  # type: ignore[override]  # sums, not a longer tuple
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


NO_USAGE = Usage()


def read_usage(usage: Any) -> Usage:
    """`usage` as a provider sent it, or None, of chat completions, /v1/responses or /v1/embeddings. Missing and odd
    values count as 0."""
    if type(usage) is not dict:
        return NO_USAGE
    get = usage.get
    prompt = get("prompt_tokens")
    if prompt is None:
        prompt = get("input_tokens")
    completion = get("completion_tokens")
    if completion is None:
        completion = get("output_tokens")
    of_prompt = get("prompt_tokens_details") or get("input_tokens_details")
    of_completion = get("completion_tokens_details") or get("output_tokens_details")
    return Usage(
        prompt if type(prompt) is int and prompt > 0 else 0,
        _count(of_prompt.get("cached_tokens")) if type(of_prompt) is dict else 0,
        completion if type(completion) is int and completion > 0 else 0,
        _count(of_completion.get("reasoning_tokens")) if type(of_completion) is dict else 0,
    )


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


@dataclass(slots=True)
class Success:
    """HTTP 200 with a readable JSON object.

    `body` is the object's bytes as received (after decompression, or as folded from a stream);
    `data` the same, parsed. `headers` are the captured ones only (allow-list), names lower-case.
    `rate_headers` are rate-limit headers, for the pacer. Seconds are floats.
    """

    status: int
    body: bytes
    data: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    rate_headers: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None
    latency_s: float = 0.0
    cost_usd: float | None = None  # the provider's own figure (header or usage), if it gives one


@dataclass(slots=True)
class Failure:
    """A call without a usable answer.

    `status` is None where no HTTP status was read. `body` is the provider's error body, scrubbed and
    parsed (an OpenAI-shaped {"error": {...}} where one could be made), for the error file.
    `retry_after_s` is the provider's own wait, clamped to [0, 86400]; `should_retry` is its
    x-should-retry. `param` names the field for UNSUPPORTED_PARAM. `scope` is the budget's scope for
    BUDGET (a string such as "end_user:alice"), where the request shows one. `sent` is False when
    nothing can have been charged. `ended_server`: a replica died while this was its only call.
    """

    kind: FailureKind
    message: str
    status: int | None = None
    code: str | None = None
    param: str | None = None
    body: dict[str, Any] | None = None
    retry_after_s: float | None = None
    should_retry: bool | None = None
    resume_at: float | None = None
    scope: str | None = None
    sent: bool = True
    ended_server: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    rate_headers: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None
    latency_s: float = 0.0


Outcome = Success | Failure
