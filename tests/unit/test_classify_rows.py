"""Every row of the error table, with a body that a provider really sends or documents."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from batch.domain.outcome import Failure, FailureKind
from batch.providers.classify import ROWS, Signal, classify, find_row
from batch.providers.error_shapes import read_error
from batch.providers.headers import parse_rate_headers
from batch.providers.presets import load_preset

NOW = 1_790_000_000.0
K = FailureKind


def openai_error(message: str, code: str | None = None, kind: str | None = None, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "code": code, **more}}


GEMINI_DAY = [
    {
        "error": {
            "code": 429,
            "message": "You exceeded your current quota, please check your plan and billing details.",
            "status": "RESOURCE_EXHAUSTED",
            "details": [
                {"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}]},
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "22s"},
            ],
        }
    }
]
GEMINI_MINUTE = [
    {
        "error": {
            "code": 429,
            "message": "You exceeded your current quota.",
            "status": "RESOURCE_EXHAUSTED",
            "details": [{"violations": [{"quotaId": "GenerateRequestsPerMinutePerProject"}]}, {"retryDelay": "22s"}],
        }
    }
]
GROQ_TOKENS = (
    "Rate limit reached for model `m` in organization `o` on tokens per minute (TPM): Limit 15000, Used 11972, "
    "Requested 4351. Please try again in 5.289s."
)

OVER_BUDGET = {"message": "over", "budget": {"name": "b", "period_resets_at": "2026-12-01T00:00:00Z"}}

# (row, provider, status, body, headers)
CASES: list[tuple[str, str, int, Any, dict[str, str]]] = [
    ("budget", "modelux", 402, OVER_BUDGET, {}),
    ("quota by status", "deepseek", 402, openai_error("Insufficient Balance"), {}),
    ("quota by name", "openai", 429, openai_error("You exceeded your current quota", "insufficient_quota"), {}),
    ("quota by sentence", "megallm", 429, openai_error("You exceeded your current quota, check billing"), {}),
    ("spend limit", "anthropic", 400, openai_error("You have reached your specified API spend limit"), {}),
    ("unauthorized", "mx4", 401, {"error": {"code": "authentication_error", "message": "Invalid API key"}}, {}),
    ("wrong key by name", "openai", 403, openai_error("bad", "invalid_api_key"), {}),
    ("wrong key in a 400", "xai", 400, {"code": "Client error", "error": "Incorrect API key provided: xa***"}, {}),
    ("request over the limit", "groq", 413, openai_error("Too large: Limit 6000, Requested 9000", kind="tokens"), {}),
    ("context by name", "mx4", 400, {"error": {"code": "context_length_exceeded", "message": "too many"}}, {}),
    ("context by text", "cerebras", 400, openai_error("Current length is 9000 while limit is 8192"), {}),
    ("policy by name", "azure", 400, openai_error("filtered", "content_filter"), {}),
    ("policy by text", "openai", 400, openai_error("Your request was rejected by our safety system"), {}),
    ("own schema check by name", "groq", 400, openai_error("Failed", "json_validate_failed"), {}),
    ("own schema check by text", "groq", 400, openai_error("Generated JSON does not match the schema"), {}),
    ("parameter named", "openai", 400, openai_error("Unsupported parameter: 'stop'", param="stop"), {}),
    ("own schema check by status", "modelux", 422, openai_error("validation failed"), {}),
    ("model by name", "openai", 404, openai_error("no", "model_not_found"), {}),
    ("model by text", "openrouter", 400, openai_error("foo/bar is not a valid model ID", code=400), {}),
    ("not found", "xai", 404, {"error": "Not Found"}, {}),
    ("redirect", "openai-compatible", 301, "", {}),
    ("overloaded by name", "anthropic", 500, openai_error("Overloaded", kind="overloaded_error"), {}),
    ("overloaded by status", "anthropic", 529, "", {}),
    ("daily window", "gemini", 429, GEMINI_DAY, {}),
    ("system demand", "azure", 429, openai_error("The system is currently experiencing high demand"), {}),
    ("too many at once", "deepseek", 429, openai_error("Rate limit reached"), {}),
    ("ramping too fast", "fireworks", 429, openai_error("slow down"), {}),
    ("rate", "groq", 429, openai_error(GROQ_TOKENS, "rate_limit_exceeded", "tokens"), {}),
    ("forbidden", "mx4", 403, {"error": {"code": "permission_denied", "message": "region"}}, {}),
    ("conflict", "openai", 409, openai_error("try again"), {}),
    ("failed generation", "tgi", 424, {"error": "Request failed during generation", "error_type": "generation"}, {}),
    ("bad request", "openai", 400, openai_error("temperature must be between 0 and 2", param="temperature"), {}),
    ("not implemented", "vllm", 501, openai_error("not implemented", kind="NotImplementedError", code=501), {}),
    ("dead engine", "vllm", 500, openai_error("EngineCore is dead: EngineDeadError", code=500), {}),
    ("unavailable", "sglang", 503, openai_error("The request queue is full."), {}),
    ("server error", "modelbox", 502, "<html><head><title>502</title></head><body>Bad Gateway</body></html>", {}),
    ("odd status", "xai", 202, "", {}),
]  # fmt: skip


def as_bytes(body: Any) -> bytes:
    return body.encode() if isinstance(body, str) else orjson.dumps(body)


def classified(provider: str, status: int, body: Any, headers: dict[str, str] | None = None) -> Failure:
    preset = load_preset(provider)
    return classify(status, headers or {}, read_error(as_bytes(body), status), preset, now=NOW, asked_schema=True)


@pytest.mark.parametrize(("row", "provider", "status", "body", "headers"), CASES, ids=[case[0] for case in CASES])
def test_each_row_is_chosen_for_its_own_error(
    row: str, provider: str, status: int, body: Any, headers: dict[str, str]
) -> None:
    """The row that fires is the named one, and the failure carries that row's kind."""
    preset = load_preset(provider)
    signal = Signal(
        status,
        read_error(as_bytes(body), status),
        preset.errors,
        parse_rate_headers(headers, preset.rate_headers, NOW),
        asked_schema=True,
    )
    chosen = find_row(signal)
    assert chosen.name == row
    assert classified(provider, status, body, headers).kind is chosen.kind


def test_no_row_is_without_a_case() -> None:
    """A row that no case reaches is either dead or untested."""
    assert {case[0] for case in CASES} == {row.name for row in ROWS}


def test_every_kind_that_an_answer_can_mean_has_a_row() -> None:
    """Only the transport's own faults have no row."""
    by_transport = {K.CONNECT, K.DISCONNECT, K.TIMEOUT}
    assert {row.kind for row in ROWS} == set(K) - by_transport


def test_gemini_quota_sentence_is_a_rate_when_the_quota_counts_minutes() -> None:
    """OpenAI's billing sentence is Gemini's rate sentence; the quotaId decides."""
    failure = classified("gemini", 429, GEMINI_MINUTE)
    assert failure.kind is K.RATE_LIMIT
    assert failure.retry_after_s == 22.0


def test_gemini_day_quota_resumes_at_midnight_in_california() -> None:
    failure = classified("gemini", 429, GEMINI_DAY)
    assert failure.resume_at is not None
    assert 0 < failure.resume_at - NOW <= 86_400
    assert failure.resume_at % 3600 == 0


def test_groq_day_headers_make_a_429_daily_only_when_no_minute_is_named() -> None:
    """x-ratelimit-remaining-requests counts days there."""
    used_up = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "3h2m"}
    assert classified("groq", 429, openai_error("Rate limit reached"), used_up).kind is K.RATE_DAILY
    assert classified("groq", 429, openai_error(GROQ_TOKENS), used_up).kind is K.RATE_LIMIT


def test_modelux_budget_resumes_when_its_period_resets() -> None:
    failure = classified("modelux", 402, OVER_BUDGET, {"retry-after": "60"})
    assert failure.resume_at == 1_796_083_200.0


def test_modelux_422_is_a_bad_request_when_no_schema_was_asked() -> None:
    preset = load_preset("modelux")
    failure = classify(422, {}, read_error(as_bytes(openai_error("x"))), preset, now=NOW)
    assert failure.kind is K.INVALID_REQUEST


def test_x_should_retry_is_read_in_both_senses() -> None:
    assert classified("openai", 500, "", {"x-should-retry": "false"}).should_retry is False
    assert classified("openai", 400, openai_error("x"), {"x-should-retry": "true"}).should_retry is True
    assert classified("openai", 500, "").should_retry is None


def test_an_error_body_of_any_shape_becomes_openais() -> None:
    """The error file shows one shape, with what else the provider said beside it."""
    given = {"error": {"code": "invalid_request_error", "message": "m", "details": {"field": "n"}}}
    body = classified("mx4", 400, given).body
    assert body == {
        "error": {
            "code": "invalid_request_error", "message": "m", "details": {"field": "n"}, "type": None, "param": "n",
        }
    }  # fmt: skip


def test_a_forbidden_line_of_mx4_may_be_about_its_content() -> None:
    """MX4 answers 403 for single contents too: the scope says so to the retry decision."""
    assert classified("mx4", 403, openai_error("sovereignty violation")).scope == "content"
    assert classified("xai", 403, openai_error("team blocked")).scope is None


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{", b'"text"', b"7", b"\xff\xfe", b'{"error": null}', b'{"detail": [{}]}']
)
@pytest.mark.parametrize("status", [200, 202, 302, 400, 404, 418, 429, 500, 599, 999])
def test_no_body_and_no_status_breaks_the_classifier(body: bytes, status: int) -> None:
    preset = load_preset("openai")
    failure = classify(status, {}, read_error(body, status), preset, now=NOW)
    assert failure.message
    assert failure.body is not None
