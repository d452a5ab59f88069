"""How long a failed call says to wait.

Owns: the order retry-after-ms, retry-after, body hints, reset headers; and instants at which a daily quota
or a budget starts anew. May not touch: the decision to wait (domain.retry). Waits are clamped to a day.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from batch.providers.error_shapes import ErrorView
from batch.providers.headers import (
    RateReading,
    clamp_wait,
    parse_duration_text,
    parse_instant,
    parse_retry_after,
)

_HINTS = (
    re.compile(r"(?:try|retry) again in (?P<d>(?:\d+(?:\.\d+)?(?:ms|[dhms]))+)", re.IGNORECASE),
    re.compile(
        r"(?:try again|retry|wait)\s+(?:in|after|for)?\s*(?P<n>\d+(?:\.\d+)?) ?"
        r"(?P<u>ms|milliseconds?|s|seconds?|m|minutes?|hours?)\b",
        re.IGNORECASE,
    ),
)
_UNITS = {"ms": 0.001, "milli": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def extract_wait(headers: Mapping[str, str], view: ErrorView, reading: RateReading, now: float) -> float | None:
    """Seconds to wait as the provider says it, or None. `now` is Unix seconds."""
    told = parse_retry_after(headers, now)
    if told is None:
        told = _wait_in_body(view, now)
    return told if told is not None else reading.exhausted_for_s


def _wait_in_body(view: ErrorView, now: float) -> float | None:
    for source in (view.raw.get("error"), view.raw):
        if not isinstance(source, dict):
            continue
        delay = _retry_info(source.get("details"))
        if delay is None:
            delay = _relayed_headers(source.get("metadata"), now)
        if delay is None and isinstance(source.get("retry_after"), int | float):
            delay = float(source["retry_after"])
        if delay is not None:
            return clamp_wait(delay)
    return _wait_in_text(view.message)


def _retry_info(details: Any) -> float | None:
    """Gemini: details[] with "@type": ".../google.rpc.RetryInfo" and retryDelay "22s"."""
    for entry in details if isinstance(details, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("retryDelay"), str):
            return parse_duration_text(entry["retryDelay"])
    return None


def _relayed_headers(metadata: Any, now: float) -> float | None:
    """OpenRouter: error.metadata.headers holds X-RateLimit-Reset in Unix milliseconds."""
    headers = metadata.get("headers") if isinstance(metadata, dict) else None
    if not isinstance(headers, dict):
        return None
    reset = parse_instant(str(headers.get("X-RateLimit-Reset", "")))
    return None if reset is None else reset - now


def _wait_in_text(message: str) -> float | None:
    match = _HINTS[0].search(message)
    if match:
        seconds = parse_duration_text(match["d"])
        return None if seconds is None else clamp_wait(seconds)
    match = _HINTS[1].search(message)
    if match is None:
        return None
    unit = match["u"].lower()
    factor = 0.001 if unit.startswith(("ms", "milli")) else _UNITS[unit[0]]
    return clamp_wait(float(match["n"]) * factor)


def instant_at(raw: Mapping[str, Any], path: str) -> float | None:
    """Unix seconds of the instant at a dotted path, looked for at the top and inside "error"."""
    for source in (raw, raw.get("error")):
        value: Any = source
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, str | int | float):
            return parse_instant(str(value))
    return None


def next_midnight(zone: str, now: float) -> float:
    """Unix seconds of the next midnight in the named time zone."""
    here = datetime.fromtimestamp(now, UTC).astimezone(ZoneInfo(zone))
    return datetime.combine(here.date() + timedelta(days=1), time(), ZoneInfo(zone)).timestamp()
