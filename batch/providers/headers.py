"""Rate-limit headers of all families, read into one shape.

Owns: the value forms (durations, Unix times, RFC 3339, HTTP dates) and RateReading.
May not touch: what is done about it; the pacer lowers its estimate of what remains from a reading, and
raises a limit only from a stated limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, get_args

from batch.providers.presets import RateHeaders

MAX_WAIT_S = 86_400.0
RATE_PREFIXES = ("x-ratelimit-", "x-tokenlimit-", "anthropic-ratelimit-", "ratelimit-", "retry-after")

Counts = Literal["requests", "tokens", "input_tokens", "output_tokens"]

_PERIODS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}
_PERIOD_WORDS = {
    **_PERIODS, "1s": 1.0, "1m": 60.0, "1h": 3600.0, "1d": 86_400.0, "seconds": 1.0, "minutes": 60.0, "24h": 86_400.0,
}  # fmt: skip
_KINDS = ("limit", "remaining", "reset")
_DURATION = re.compile(
    r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?"
)
# (what is counted, over how long) → its name in domain.limits.Limits, and the factor to that name's unit
_LIMIT_NAMES: dict[tuple[Counts, float | None], tuple[str, float]] = {
    **{("requests", seconds): (f"requests_per_{unit}", 1.0) for unit, seconds in _PERIODS.items()},
    ("tokens", 86_400.0): ("tokens_per_day", 1.0),
}
for _kind in get_args(Counts)[1:]:
    _LIMIT_NAMES |= {(_kind, 1.0): (f"{_kind}_per_minute", 60.0), (_kind, 60.0): (f"{_kind}_per_minute", 1.0)}


@dataclass(frozen=True, slots=True)
class RateWindow:
    """One counter. `period_s` is None where the provider does not say; `reset_s` is seconds from now.

    For the OpenAI family `reset_s` is the time until the bucket is full again, so it refills at
    (limit - remaining) / reset_s.
    """

    counts: Counts
    period_s: float | None
    limit: float | None = None
    remaining: float | None = None
    reset_s: float | None = None


@dataclass(frozen=True, slots=True)
class RateReading:
    """All windows that one answer's headers tell, and its wait, if it names one (seconds)."""

    windows: tuple[RateWindow, ...] = ()
    retry_after_s: float | None = None

    @property
    def limits(self) -> dict[str, float]:
        """Stated limits under the names of domain.limits.Limits."""
        return {name: window.limit * factor for name, factor, window in self._named() if window.limit}

    @property
    def remaining(self) -> dict[str, float]:
        """Units that remain, under the names of domain.limits.Limits."""
        found: dict[str, float] = {}
        for name, _, window in self._named():
            if window.remaining is not None:
                found[name] = min(window.remaining, found.get(name, window.remaining))
        return found

    def _named(self) -> Iterator[tuple[str, float, RateWindow]]:
        for window in self.windows:
            if (window.counts, window.period_s) in _LIMIT_NAMES:
                yield *_LIMIT_NAMES[window.counts, window.period_s], window

    @property
    def exhausted_for_s(self) -> float | None:
        """Seconds until the used-up windows reset; None when none is used up or no reset is told."""
        waits = [w.reset_s for w in self.windows if w.remaining == 0 and w.reset_s is not None]
        return max(waits, default=None)


def parse_rate_headers(headers: Mapping[str, str], rules: RateHeaders, now: float) -> RateReading:
    """One reading of an answer's headers (names lower-case). `now` is Unix seconds. Odd values are left out."""
    retry_after = parse_retry_after(headers, now)
    if rules.family == "none":
        return RateReading((), retry_after)
    cells: dict[tuple[Counts, float | None], dict[str, float]] = {}
    for name, value in headers.items():
        place = _place_of(name, rules)
        if place is None:
            continue
        kind, counts, period_s = place
        number = parse_reset(value, now) if kind == "reset" else _number(value)
        if number is not None:
            cells.setdefault((counts, period_s), {})[kind] = number
    windows = tuple(
        RateWindow(counts, period_s, cell.get("limit"), cell.get("remaining"), cell.get("reset"))
        for (counts, period_s), cell in cells.items()
    )
    return RateReading(windows, retry_after)


def parse_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds in retry-after-ms, else retry-after (seconds or an HTTP date), clamped to a day."""
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return clamp_wait(milliseconds / 1000.0)
    value = headers.get("retry-after")
    return parse_reset(value, now) if value else None


def parse_reset(value: str, now: float) -> float | None:
    """Seconds from now: 11.38, "6m0s", "12ms", Unix seconds or milliseconds, RFC 3339, an HTTP date."""
    text = value.strip()
    number = _number(text)
    if number is not None:
        return clamp_wait(parse_epoch(number) - now if number >= 1e9 else number)
    duration = parse_duration_text(text)
    if duration is not None:
        return clamp_wait(duration)
    instant = parse_instant(text)
    return clamp_wait(instant - now) if instant is not None else None


def parse_epoch(number: float) -> float:
    """Unix seconds of a number that is Unix seconds or milliseconds."""
    return number / 1000.0 if number >= 1e12 else number


def parse_duration_text(text: str) -> float | None:
    """Seconds in "1s", "6m0s", "2m59.56s", "12ms", "1h"; None when it is no such duration."""
    match = _DURATION.fullmatch(text.strip())
    if not text.strip() or match is None or not any(match.groups()):
        return None
    factors = (86_400.0, 3600.0, 60.0, 1.0, 0.001)
    return sum(float(part) * factor for part, factor in zip(match.groups(), factors, strict=True) if part)


def parse_instant(text: str) -> float | None:
    """Unix seconds of an RFC 3339 or HTTP date, or of a Unix time written as text."""
    number = _number(text)
    if number is not None:
        return parse_epoch(number) if number >= 1e9 else None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError):
            return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def clamp_wait(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_WAIT_S)


def _place_of(name: str, rules: RateHeaders) -> tuple[str, Counts, float | None] | None:
    """(limit | remaining | reset, what it counts, over how long), or None for a header of another kind."""
    prefix = next((p for p in RATE_PREFIXES[:4] if name.startswith(p)), None)
    if prefix is None:
        return None
    words = name[len(prefix):].split("-")
    kind = next((word for word in words if word in _KINDS), None)
    if kind is None:
        return None
    rest = [word for word in words if word not in (kind, "per")]
    period_s = next((_PERIOD_WORDS[word] for word in rest if word in _PERIOD_WORDS), None)
    subject = frozenset(word for word in rest if word not in _PERIOD_WORDS)
    counts = _SUBJECTS.get(subject or (frozenset({"tokens"}) if "token" in prefix else frozenset({"requests"})))
    if counts is None:
        return None
    usual = rules.requests if counts == "requests" else rules.tokens
    return kind, counts, period_s if period_s is not None else _PERIODS.get(usual)


_SUBJECTS: dict[frozenset[str], Counts] = {
    frozenset({"requests"}): "requests",
    frozenset({"tokens"}): "tokens",
    frozenset({"input", "tokens"}): "input_tokens",
    frozenset({"tokens", "prompt"}): "input_tokens",
    frozenset({"output", "tokens"}): "output_tokens",
    frozenset({"tokens", "generated"}): "output_tokens",
}


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < 1e15 else None
