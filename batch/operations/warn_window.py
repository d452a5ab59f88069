"""How long a batch takes at the limits that are known, and which limit binds.

Owns: the arithmetic and the warning's words. May not touch: live use of a lane; this is the best case.
Serves ingest's `warnings`, `check` and `run`'s preview.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from batch.domain.limits import Limits


@dataclass(frozen=True, slots=True)
class LaneLoad:
    """What one lane has to do. Tokens are estimates for all its lines together."""

    provider: str
    model: str
    limits: Limits
    requests: int
    input_tokens: int
    output_tokens: int

    def with_more(self, other: LaneLoad) -> LaneLoad:
        return replace(
            self,
            requests=self.requests + other.requests,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
        )


@dataclass(frozen=True, slots=True)
class Forecast:
    """The slowest lane decides: seconds, and the limit that binds it ("tokens_per_minute")."""

    seconds: float
    provider: str
    model: str
    limit: str
    value: float


def forecast(loads: Iterable[LaneLoad]) -> Forecast | None:
    """The slowest of lanes that run side by side; None when none has a known limit.

    Limits of scope "key" are shared by all models of a provider; others hold for each model alone.
    """
    domains: dict[tuple[str, str], LaneLoad] = {}
    for load in loads:
        domain = load.provider, "" if load.limits.scope == "key" else load.model
        known = domains.get(domain)
        domains[domain] = load if known is None else known.with_more(load)
    slowest: Forecast | None = None
    for load in domains.values():
        for name, per_s, amount in _demands(load):
            value = getattr(load.limits, name)
            if value:
                seconds = amount * per_s / value
                if slowest is None or seconds > slowest.seconds:
                    slowest = Forecast(seconds, load.provider, load.model, name, value)
    return slowest


def window_warning(found: Forecast | None, seconds_left: float | None) -> str | None:
    """A sentence when the work cannot end in time, else None."""
    if found is None or seconds_left is None or found.seconds <= seconds_left:
        return None
    limit = found.limit.replace("_per_", "/").replace("_", " ")
    needed, left = duration(found.seconds), duration(max(0.0, seconds_left))
    return (
        f"This batch cannot finish within its completion window: at {found.value:,.0f} {limit}, "
        f"{found.provider} / {found.model} needs about {needed}, and {left} are left."
    )


def duration(seconds: float) -> str:
    """For people, here and in the command line: 12 s, 4 min, 13 h 20 min, 3 d 4 h."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        hours, rest = divmod(minutes, 60)
        return f"{hours} h {rest:02} min" if rest else f"{hours} h"
    days, rest = divmod(round(minutes / 60), 24)
    return f"{days} d {rest} h" if rest else f"{days} d"


def _demands(load: LaneLoad) -> Iterable[tuple[str, float, int]]:
    """(limit, its unit in seconds, what counts against it). Windows that the work ends within do not bind:
    a burst may use a whole window at once, so only what is beyond one window has to wait."""
    tokens = load.input_tokens + load.output_tokens
    amounts = {
        "requests": load.requests,
        "tokens": tokens,
        "input_tokens": load.input_tokens,
        "output_tokens": load.output_tokens,
    }
    for unit, seconds in (("second", 1.0), ("minute", 60.0), ("hour", 3600.0), ("day", 86_400.0)):
        for kind, amount in amounts.items():
            name = f"{kind}_per_{unit}"
            value = getattr(load.limits, name, None)
            if value:
                yield name, seconds, max(0, amount - int(value))
