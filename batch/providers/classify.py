"""What kind of failure an HTTP answer is: one table, read from top to bottom.

Owns: ROWS, classify. Reads error.type and error.code and the message and headers and status, because no
provider uses them alike. Each row names itself; a test covers every row.
May not touch: what is done about it (domain.retry), the network, the clock (`now` is given).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from batch.domain.outcome import Failure, FailureKind
from batch.providers import error_words as words
from batch.providers.error_shapes import ErrorView
from batch.providers.headers import RateReading, parse_rate_headers
from batch.providers.params import demotable_param
from batch.providers.presets import ErrorRules, Preset
from batch.providers.waits import extract_wait, instant_at, next_midnight

K = FailureKind


@dataclass(frozen=True, slots=True)
class Signal:
    """All that a row may look at. `asked_schema`: the call had a response_format."""

    status: int
    view: ErrorView
    rules: ErrorRules
    reading: RateReading
    asked_schema: bool = False

    def named(self, *names: str) -> bool:
        return any(name in self.view.names for name in names)

    def says(self, pattern: re.Pattern[str]) -> bool:
        return pattern.search(self.view.message) is not None


@dataclass(frozen=True, slots=True)
class Row:
    """`statuses` empty means any; `fits` None means that the status alone decides."""

    name: str
    kind: FailureKind
    statuses: frozenset[int]
    fits: Callable[[Signal], bool] | None = None

    def matches(self, signal: Signal) -> bool:
        return (not self.statuses or signal.status in self.statuses) and (self.fits is None or self.fits(signal))


def _asks_more_than_limit(signal: Signal) -> bool:
    match = words.ASKED_TEXT.search(signal.view.message)
    return match is not None and int(match[2].replace(",", "")) > int(match[1].replace(",", ""))


def _is_quota_sentence(signal: Signal) -> bool:
    """The sentence means billing at OpenAI; Gemini uses it for rates and names a quotaId."""
    is_google = signal.named("resource_exhausted") or "quotaId" in str(signal.view.raw)
    return not is_google and signal.says(words.QUOTA_TEXT)


def _is_bad_key_text(signal: Signal) -> bool:
    pattern = signal.rules.bad_key_in_400
    return pattern is not None and re.search(pattern, signal.view.message) is not None


def _is_context_text(signal: Signal) -> bool:
    own = any(re.search(pattern, signal.view.message) for pattern in signal.rules.context)
    return own or signal.says(words.CONTEXT_TEXT)


def _is_schema_status(signal: Signal) -> bool:
    return signal.asked_schema and signal.status in signal.rules.schema_statuses


def _is_daily(signal: Signal) -> bool:
    if signal.says(words.DAILY_TEXT) or "PerDay" in str(signal.view.raw):
        return True
    if "PerMinute" in str(signal.view.raw) or "per minute" in signal.view.message.lower():
        return False
    return any(w.remaining == 0 and (w.period_s or 0) >= 86_400 for w in signal.reading.windows)


def _is_rate(signal: Signal) -> bool:
    named = signal.named(*words.RATE_NAMES, *signal.rules.rate_codes)
    return signal.status == 429 or (named and signal.status in (400, 403, 503))


def _is_concurrency(signal: Signal) -> bool:
    return signal.rules.concurrency_429 or signal.says(words.CONCURRENT_TEXT)


def _of(*statuses: int) -> frozenset[int]:
    return frozenset(statuses)


ANY = _of()
BAD = _of(400, 422)

# Order matters: what names a cause stands before what only has a status.
ROWS: tuple[Row, ...] = (
    Row("budget", K.BUDGET, _of(402), lambda s: "budget" in s.view.raw or s.named(*words.BUDGET_NAMES)),
    Row("quota by status", K.QUOTA, _of(402)),
    Row("quota by name", K.QUOTA, _of(400, 403, 429), lambda s: s.named(*words.QUOTA_NAMES, *s.rules.quota_codes)),
    Row("quota by sentence", K.QUOTA, _of(403, 429), _is_quota_sentence),
    Row("spend limit", K.QUOTA, _of(400, 403, 429), lambda s: s.says(words.SPEND_TEXT)),
    Row("unauthorized", K.BAD_KEY, _of(401)),
    Row("wrong key by name", K.BAD_KEY, _of(400, 403), lambda s: s.named(*words.KEY_NAMES)),
    Row("wrong key in a 400", K.BAD_KEY, _of(400), _is_bad_key_text),
    Row("request over the limit", K.TOO_MANY_TOKENS, _of(413, 429), _asks_more_than_limit),
    Row("context by name", K.CONTEXT_LENGTH, _of(400, 413, 422, 500), lambda s: s.named(*words.CONTEXT_NAMES)),
    Row("context by text", K.CONTEXT_LENGTH, _of(400, 413, 422, 500), _is_context_text),
    Row("policy by name", K.CONTENT_POLICY, _of(400, 403, 422, 451), lambda s: s.named(*words.POLICY_NAMES)),
    Row("policy by text", K.CONTENT_POLICY, _of(400, 403, 422), lambda s: s.says(words.POLICY_TEXT)),
    Row("own schema check by name", K.SCHEMA_FAILED, BAD, lambda s: s.named(*words.SCHEMA_NAMES)),
    Row("own schema check by text", K.SCHEMA_FAILED, BAD, lambda s: s.says(words.SCHEMA_TEXT)),
    Row("parameter named", K.UNSUPPORTED_PARAM, BAD, lambda s: demotable_param(s.view) is not None),
    Row("own schema check by status", K.SCHEMA_FAILED, ANY, _is_schema_status),
    Row("model by name", K.MODEL_NOT_FOUND, _of(400, 403, 404, 410), lambda s: s.named(*words.MODEL_NAMES)),
    Row("model by text", K.MODEL_NOT_FOUND, _of(400, 403), lambda s: s.says(words.MODEL_TEXT)),
    Row("not found", K.MODEL_NOT_FOUND, _of(404, 405, 410)),
    Row("redirect", K.MODEL_NOT_FOUND, frozenset(range(300, 400))),
    Row("overloaded by name", K.OVERLOADED, ANY, lambda s: s.named(*words.OVERLOAD_NAMES)),
    Row("overloaded by status", K.OVERLOADED, ANY, lambda s: s.status in (529, *s.rules.overloaded_statuses)),
    Row("daily window", K.RATE_DAILY, ANY, lambda s: _is_rate(s) and _is_daily(s)),
    Row("system demand", K.OVERLOADED, _of(429), lambda s: s.says(words.DEMAND_TEXT)),
    Row("too many at once", K.RATE_CONCURRENCY, _of(429), _is_concurrency),
    Row("ramping too fast", K.RATE_DYNAMIC, _of(429), lambda s: s.rules.dynamic_429 or s.says(words.RAMP_TEXT)),
    Row("rate", K.RATE_LIMIT, ANY, _is_rate),
    Row("forbidden", K.FORBIDDEN, _of(403)),
    Row("conflict", K.CONFLICT, _of(408, 409, 425)),
    Row("failed generation", K.SERVER_ERROR, _of(424)),
    Row("bad request", K.INVALID_REQUEST, frozenset(range(400, 500))),
    Row("not implemented", K.NOT_IMPLEMENTED, _of(501)),
    Row("dead engine", K.UNAVAILABLE, _of(500), lambda s: s.says(words.DEAD_ENGINE_TEXT)),
    Row("unavailable", K.UNAVAILABLE, _of(503)),
    Row("server error", K.SERVER_ERROR, frozenset(range(500, 600))),
    Row("odd status", K.BAD_ANSWER, ANY),
)


def classify(
    status: int, headers: Mapping[str, str], view: ErrorView, preset: Preset, *, now: float, asked_schema: bool = False
) -> Failure:
    """The Failure that an HTTP answer is. `headers` have lower-case names, `now` is Unix s. An error inside a 200
    goes by the status that its own code stands for."""
    rules = preset.errors
    told = effective_status(status, view)
    reading = parse_rate_headers(headers, preset.rate_headers, now)
    row = find_row(Signal(told, view, rules, reading, asked_schema))
    wait_s = extract_wait(headers, view, reading if told == 429 else RateReading(), now)
    demoted = demotable_param(view) if row.kind is K.UNSUPPORTED_PARAM else None
    return Failure(
        kind=row.kind,
        message=view.message,
        status=status,
        code=view.code or view.type,
        param=demoted or view.param,
        body=view.to_body(),
        retry_after_s=wait_s,
        should_retry=_should_retry(headers),
        resume_at=_resume_at(row.kind, view, rules, wait_s, now),
        scope="content" if row.kind is K.FORBIDDEN and rules.forbidden_is_content else None,
    )


def find_row(signal: Signal) -> Row:
    return next(row for row in ROWS if row.matches(signal))


def effective_status(status: int, view: ErrorView) -> int:
    """The status that decides: the answer's own, or for an error inside a 200 the one that its code stands for."""
    if status != 200:
        return status
    if view.inner_status is not None:
        return view.inner_status
    return next((words.STATUS_OF_TYPE[name] for name in sorted(view.names) if name in words.STATUS_OF_TYPE), 500)


def _should_retry(headers: Mapping[str, str]) -> bool | None:
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())


def _resume_at(
    kind: FailureKind, view: ErrorView, rules: ErrorRules, wait_s: float | None, now: float
) -> float | None:
    if kind in (K.BUDGET, K.QUOTA) and rules.budget_reset:
        told = instant_at(view.raw, rules.budget_reset)
        if told is not None:
            return told
    if kind is K.RATE_DAILY and rules.daily_reset_zone:
        return next_midnight(rules.daily_reset_zone, now)
    if kind in (K.BUDGET, K.RATE_DAILY) and wait_s is not None:
        return now + wait_s
    return None
