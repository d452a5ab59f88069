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
    return (
        f"This batch cannot finish within its completion window: at {found.value:,.0f} {limit}, "
        f"{found.provider} / {found.model} needs about {span(found.seconds)}, and {span(seconds_left)} are left."
    )


def span(seconds: float) -> str:
    """ "45 s", "13 min", "8 h 57 min", "3 d 4 h"."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86_400)
    if minutes < 1:
        return f"{max(0, int(seconds))} s"
    if hours < 1:
        return f"{minutes} min"
    if days < 1:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


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
