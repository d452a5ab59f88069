"""Rate-limit headers, family by family, and every form of Retry-After.

Owns: how readings of the limiter are spelled. Names are lower-case except where a vendor's are not.
May not touch: the limiter's state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime

from batch.simulator.config import RetryAfterForm
from batch.simulator.limiter import Reading

Headers = list[tuple[str, str]]


def rate_headers(family: str, readings: Sequence[Reading], now: float) -> Headers:
    """The headers of `family` for these readings; `now` is Unix time. Unknown families raise KeyError."""
    return _FAMILIES[family].spell(readings, now)


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


@dataclass(frozen=True, slots=True)
class _Family:
    """`names` of the limited things; `headers` are templates of {name}, {limit}, {left} and {reset}."""

    names: Mapping[str, str]
    headers: Mapping[str, str]
    reset: Callable[[Reading, float], str] = lambda reading, now: ""
    per_second: bool = False  # figures are rates
    longest_s: float = math.inf  # of a limit that is shown

    def spell(self, readings: Sequence[Reading], now: float) -> Headers:
        told: Headers = []
        for reading in readings:
            name = self.names.get(reading.what)
            if name is None or reading.per_s > self.longest_s:
                continue
            over_s = reading.per_s if self.per_second else 1.0
            values = {
                "name": name, "limit": str(int(reading.limit / over_s)), "left": str(int(reading.remaining / over_s)),
                "reset": self.reset(reading, now), "suffix": _SUFFIXES.get(reading.per_s, ""),
            }  # fmt: skip
            told += [(header.format_map(values), text.format_map(values)) for header, text in self.headers.items()]
        return told


_SUFFIXES = {3600.0: "-1h", 86_400.0: "-1d"}
_BOTH = {"requests": "requests", "tokens": "tokens"}
_LIMITS = {
    "x-ratelimit-limit-{name}": "{limit}",
    "x-ratelimit-remaining-{name}": "{left}",
    "x-ratelimit-reset-{name}": "{reset}",
}
_OPENAI = _Family(_BOTH, _LIMITS, lambda reading, now: duration(reading.reset_s))
_FAMILIES = {
    "none": _Family({}, {}),
    "openai": _OPENAI,
    "groq": _OPENAI,  # the same names; its requests are per day, which the limits say
    # resets are Unix times; of an hour's limit nothing is documented
    "mx4": _Family(_BOTH, _LIMITS, lambda reading, now: str(math.ceil(now + reading.reset_s)), longest_s=60.0),
    "anthropic": _Family(
        {**_BOTH, "input_tokens": "input-tokens", "output_tokens": "output-tokens"},
        {
            "anthropic-ratelimit-{name}-limit": "{limit}",
            "anthropic-ratelimit-{name}-remaining": "{left}",
            "anthropic-ratelimit-{name}-reset": "{reset}",
        },
        lambda reading, now: rfc3339(now + reading.reset_s),
    ),
    "cerebras": _Family(
        {"requests": "requests-day", "tokens": "tokens-minute"}, _LIMITS, lambda reading, now: f"{reading.reset_s:.6f}"
    ),
    "fireworks": _Family(
        {"input_tokens": "Prompt", "output_tokens": "Generated"}, {"X-Ratelimit-Limit-Tokens-{name}": "{limit}"},
        per_second=True,
    ),
    "together": _Family(
        {"requests": "x-ratelimit", "tokens": "x-tokenlimit"},
        {"{name}-limit": "{limit}", "{name}-remaining": "{left}", "{name}-reset": "{reset}"},
        lambda reading, now: str(math.ceil(reading.reset_s)),
        per_second=True,
    ),
    # the window as suffix
    "hourly": _Family(
        _BOTH, {name + "{suffix}": text for name, text in _LIMITS.items()},
        lambda reading, now: f"{reading.reset_s:.3f}",
    ),
}  # fmt: skip

HEADER_FAMILIES = frozenset(_FAMILIES)
