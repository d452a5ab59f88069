"""The words by which providers name a cause: codes and types (lower case), and sentences.

Owns: the vocabulary of classify.py, each group with the meaning that its name says.
May not touch: statuses and order; they stand in classify.ROWS.
"""

from __future__ import annotations

import re


def _any(*parts: str) -> re.Pattern[str]:
    return re.compile("|".join(parts), re.IGNORECASE)


QUOTA_NAMES = (
    "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance",
    "quota_exceeded", "insufficient_credits", "billing_error", "access_terminated",
)  # fmt: skip
BUDGET_NAMES = ("budget_exceeded",)
KEY_NAMES = ("invalid_api_key", "authentication_error", "invalid_authentication", "unauthenticated")
CONTEXT_NAMES = (
    "context_length_exceeded", "exceed_context_size_error", "string_above_max_length", "context_window_exceeded",
)  # fmt: skip
POLICY_NAMES = (
    "content_policy_violation", "content_filter", "responsibleaipolicyviolation", "moderation", "refusal",
    "content_policy", "moderation_blocked",
)  # fmt: skip
SCHEMA_NAMES = ("json_validate_failed",)
MODEL_NAMES = (
    "model_not_found", "model_not_available", "model_decommissioned", "invalid_model", "deploymentnotfound",
)  # fmt: skip
RATE_NAMES = ("rate_limit_error", "rate_limit_exceeded", "rate_limited")
OVERLOAD_NAMES = ("overloaded_error", "provider_overloaded", "engine_overloaded", "system_overloaded")

QUOTA_TEXT = _any(
    r"exceeded your current quota", r"insufficient (?:balance|credits?|quota|funds)",
    r"(?:not enough|out of) credits",
)  # fmt: skip
SPEND_TEXT = _any(r"spend(?:ing)?[ -]limit", r"credit balance is too low", r"billing (?:hard )?limit")
CONTEXT_TEXT = _any(
    r"maximum context length",
    r"context_length_exceeded",
    r"context (?:length|window|size)\b.*(?:exceed|limit|larger|too)",
    r"exceed\w* (?:the )?(?:model'?s? )?(?:available |maximum )?(?:context|max(?:imum)? (?:input|sequence))",
    r"(?:input|prompt) (?:is )?too long",
    r"longer than the (?:model's )?(?:maximum )?context",
    r"current length is \d+ while limit is",
    r"`?inputs`? (?:tokens )?must have less than",
)
POLICY_TEXT = _any(
    r"content[ _](?:policy|management policy|filter)", r"flagged (?:as|by|for)", r"ResponsibleAIPolicyViolation",
    r"violat\w+ .{0,40}(?:usage )?polic(?:y|ies)", r"safety (?:system|filter)",
)  # fmt: skip
SCHEMA_TEXT = _any(
    r"failed to (?:generate|validate) json", r"json_validate_failed",
    r"generated json (?:does not|doesn't) match",
    r"(?:output|response|completion) (?:does not|doesn't|did not) (?:match|conform|satisfy)",
    r"post-?hoc validation",
)  # fmt: skip
MODEL_TEXT = _any(
    r"model\b.{0,120}(?:does not exist|not found|no longer|not available|is not a valid|not exist|decommissioned)",
    r"(?:unknown|invalid|no such) model\b", r"model_not_found", r"not a valid model",
)  # fmt: skip
DAILY_TEXT = _any(r"\bper[- ]?day\b", r"PerDay", r"\b[RT]PD\b", r"\bdaily\b", r"per (?:week|month)\b")
CONCURRENT_TEXT = _any(
    r"concurren(?:t|cy)", r"too many (?:simultaneous|parallel)", r"in[- ]flight", r"model is overloaded"
)
RAMP_TEXT = _any(
    r"\bramp", r"dynamic rate", r"increas\w+ .{0,30}too (?:fast|quickly)", r"scale up .{0,30}(?:gradual|slow)"
)
DEMAND_TEXT = _any(
    r"high demand", r"system .{0,20}(?:capacity|overload)", r"capacity exceeded", r"currently overloaded"
)
DEAD_ENGINE_TEXT = _any(r"engine ?(?:core )?(?:is )?dead", r"EngineDead")
ASKED_TEXT = re.compile(r"limit:? (\d[\d,]*)\D.*?requested:? (\d[\d,]*)", re.IGNORECASE | re.DOTALL)

# An error inside a 200 has no status of its own: its type stands for one.
STATUS_OF_TYPE = {
    "invalid_request_error": 400, "invalid_request": 400, "badrequesterror": 400, "authentication_error": 401,
    "permission_denied": 403, "permission_error": 403, "not_found_error": 404, "rate_limit_error": 429,
    "rate_limit_exceeded": 429, "insufficient_quota": 429, "context_length_exceeded": 400,
    "content_policy_violation": 400, "refusal": 400, "overloaded_error": 529, "provider_overloaded": 529,
    "service_unavailable": 503, "unavailable": 503, "not_implemented": 501,
}  # fmt: skip
