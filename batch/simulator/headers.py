"""Rate-limit headers, family by family, and every form of Retry-After.

Owns: how readings of the limiter are spelled. Names are lower-case except where a vendor's are not.
May not touch: the limiter's state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import format_datetime

from batch.simulator.config import RetryAfterForm
from batch.simulator.limiter import Reading

Headers = list[tuple[str, str]]


def rate_headers(family: str, readings: Sequence[Reading], now: float) -> Headers:
    """The headers of `family` for these readings; `now` is Unix time. Unknown families raise KeyError."""
    return _FAMILIES[family](readings, now) if readings else []


def retry_after(form: RetryAfterForm, seconds: float, now: float) -> Headers:
    """Forms that stand in the body ("body_text", "retry_info") or nowhere ("none") give no header."""
    spelled = {
        "seconds": ("retry-after", str(math.ceil(seconds))),
        "float": ("retry-after", f"{seconds:.3f}"),
        "date": ("retry-after", format_datetime(datetime.fromtimestamp(now + math.ceil(seconds), UTC), usegmt=True)),
        "ms": ("retry-after-ms", str(math.ceil(seconds * 1000))),
        "zero": ("retry-after", "0"),
        "negative": ("retry-after", "-1"),
        "garbage": ("retry-after", "soon"),
        "reset": ("x-ratelimit-reset-requests", duration(seconds)),
    }
    return [spelled[form]] if form in spelled else []


def duration(seconds: float) -> str:
    """Go's way: 12ms, 1.5s, 6m0s, 1h2m3s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 2), 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest:.2f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _named(reading: Reading) -> str | None:
    return {"requests": "requests", "tokens": "tokens"}.get(reading.what)


def _openai(readings: Sequence[Reading], now: float) -> Headers:
    return [header for reading in readings if (name := _named(reading)) for header in (
        (f"x-ratelimit-limit-{name}", str(int(reading.limit))),
        (f"x-ratelimit-remaining-{name}", str(int(reading.remaining))),
        (f"x-ratelimit-reset-{name}", duration(reading.reset_s)),
    )]  # fmt: skip


def _mx4(readings: Sequence[Reading], now: float) -> Headers:
    """Resets are Unix times. One reading a name: the minute's (the hour's has no documented header)."""
    shown = [reading for reading in readings if reading.per_s <= 60]
    return [header for reading in shown if (name := _named(reading)) for header in (
        (f"x-ratelimit-limit-{name}", str(int(reading.limit))),
        (f"x-ratelimit-remaining-{name}", str(int(reading.remaining))),
        (f"x-ratelimit-reset-{name}", str(math.ceil(now + reading.reset_s))),
    )]  # fmt: skip


def _anthropic(readings: Sequence[Reading], now: float) -> Headers:
    names = {
        "requests": "requests",
        "tokens": "tokens",
        "input_tokens": "input-tokens",
        "output_tokens": "output-tokens",
    }
    return [header for reading in readings if (name := names.get(reading.what)) for header in (
        (f"anthropic-ratelimit-{name}-limit", str(int(reading.limit))),
        (f"anthropic-ratelimit-{name}-remaining", str(int(reading.remaining))),
        (f"anthropic-ratelimit-{name}-reset", rfc3339(now + reading.reset_s)),
    )]  # fmt: skip


def _cerebras(readings: Sequence[Reading], now: float) -> Headers:
    names = {"requests": "requests-day", "tokens": "tokens-minute"}
    return [header for reading in readings if (name := names.get(reading.what)) for header in (
        (f"x-ratelimit-limit-{name}", str(int(reading.limit))),
        (f"x-ratelimit-remaining-{name}", str(int(reading.remaining))),
        (f"x-ratelimit-reset-{name}", f"{reading.reset_s:.6f}"),
    )]  # fmt: skip


def _fireworks(readings: Sequence[Reading], now: float) -> Headers:
    """Tokens per second."""
    names = {"input_tokens": "Prompt", "output_tokens": "Generated"}
    return [
        (f"X-Ratelimit-Limit-Tokens-{names[reading.what]}", str(int(reading.limit / reading.per_s)))
        for reading in readings
        if reading.what in names
    ]


def _together(readings: Sequence[Reading], now: float) -> Headers:
    names = {"requests": "x-ratelimit", "tokens": "x-tokenlimit"}
    return [header for reading in readings if (name := names.get(reading.what)) for header in (
        (f"{name}-limit", str(int(reading.limit / reading.per_s) or 1)),
        (f"{name}-remaining", str(int(reading.remaining / reading.per_s))),
        (f"{name}-reset", str(math.ceil(reading.reset_s))),
    )]  # fmt: skip


def _hourly(readings: Sequence[Reading], now: float) -> Headers:
    """Names with the window as suffix, resets in seconds."""
    suffix = {60.0: "", 3600.0: "-1h", 86_400.0: "-1d"}
    return [header for reading in readings if (name := _named(reading)) for header in (
        (f"x-ratelimit-limit-{name}{suffix.get(reading.per_s, '')}", str(int(reading.limit))),
        (f"x-ratelimit-remaining-{name}{suffix.get(reading.per_s, '')}", str(int(reading.remaining))),
        (f"x-ratelimit-reset-{name}{suffix.get(reading.per_s, '')}", f"{reading.reset_s:.3f}"),
    )]  # fmt: skip


_FAMILIES = {
    "none": lambda readings, now: [],
    "openai": _openai,
    "groq": _openai,  # the same names; its requests are per day, which the limits say
    "mx4": _mx4,
    "anthropic": _anthropic,
    "cerebras": _cerebras,
    "fireworks": _fireworks,
    "together": _together,
    "hourly": _hourly,
}

HEADER_FAMILIES = frozenset(_FAMILIES)
