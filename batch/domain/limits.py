"""What one lane may send: limits as facts, with where each was learned.

Owns: Limits, and Dimension: the same limits as a pacer meters them (domain.gcra, workers.pacer).
Made by providers/ from presets, batchmill.toml and headers. Rates are per the unit in the name;
tokens count as `charge` says (PACING in docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

Charge = Literal["reserve_max", "reserve_refund", "actual", "input_only"]


@dataclass(frozen=True, slots=True)
class Limits:
    """None means unknown. `sources` says per field: "config", "preset", "headers" or "probe".

    `hard_second`: the provider counts in fixed seconds (pace at 0.97 below 100 requests/s, else 0.98).
    `adaptive`: no limit is known; adaptive concurrency starting at `start_concurrency` finds it.
    `scope`: whether the numbers hold for each model or for the key as a whole. `configured`: the rates that the
    user set, which headers may lower for a while but never raise.
    """

    requests_per_second: float | None = None
    requests_per_minute: float | None = None
    requests_per_hour: float | None = None
    requests_per_day: float | None = None
    tokens_per_minute: float | None = None
    tokens_per_day: float | None = None
    input_tokens_per_minute: float | None = None
    output_tokens_per_minute: float | None = None
    concurrency: int | None = None
    charge: Charge = "reserve_max"
    hard_second: bool = False
    start_concurrency: int = 8
    scope: Literal["model", "key"] = "model"
    sources: dict[str, str] = field(default_factory=dict)
    configured: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_rate(self) -> bool:
        """True when any requests-or-tokens rate is known (then concurrency is only a safety net)."""
        return any(getattr(self, name) is not None for name in _RATE_FIELDS)

    @property
    def counts_tokens(self) -> bool:
        """True when a limit on tokens is known, so that a call's estimate matters."""
        return any(getattr(self, name) is not None for name in _TOKEN_FIELDS)

    @property
    def requests_per_second_bound(self) -> float | None:
        """The tightest of the request rates, as requests per second."""
        return request_rate(dimensions(self))

    def to_json(self) -> dict[str, Any]:
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "configured"}
        return {name: value for name, value in shown.items() if value is not None}

    def with_learned(self, learned: Mapping[str, float]) -> Limits:
        """These limits with what headers stated. What the user configured is only ever lowered by them, and who
        configured one rate of a kind knows them all: headers often leave their period to be guessed."""
        changes: dict[str, Any] = {}
        for name, value in learned.items():
            ceiling = self.configured.get(name)
            if name not in _RATE_FIELDS or value <= 0 or (ceiling is None and self._configures_kind_of(name)):
                continue
            value = value if ceiling is None else min(value, ceiling)
            if value != getattr(self, name):
                changes[name] = value
        if not changes:
            return self
        told = {name: "config" if value == self.configured.get(name) else "headers" for name, value in changes.items()}
        return replace(self, **changes, sources={**self.sources, **told})

    def _configures_kind_of(self, name: str) -> bool:
        kind = name.partition("_per_")[0]
        return any(other.partition("_per_")[0] == kind for other in self.configured)


# What is used of a known limit at the start; workers.pacer tunes it by clean minutes and 429s.
UTILISATION = 0.99
UTILISATION_MAX = 0.995
UTILISATION_HARD_SECOND = 0.97
UTILISATION_HARD_SECOND_FAST = 0.98  # from 100 requests/s, where a second's jitter weighs less
TOKEN_TOLERANCE_S = 5.0
BURST_SHARE = 0.1  # of an hour or a day may be spent ahead of its even pace; the window itself still holds
HOUR_S, DAY_S = 3600, 86_400

Unit = Literal["request", "tokens", "input", "output"]


@dataclass(frozen=True, slots=True)
class Dimension:
    """One metered limit: `rate` units per second at full use, `tolerance_s` of them in advance.

    `window_s` and `cap`: besides the pace, at most `cap` units in any `window_s` seconds (0: none).
    """

    name: str
    unit: Unit
    rate: float
    tolerance_s: float = 0.0
    window_s: int = 0
    cap: float = 0.0


# A dimension's name and unit, the limit that states it, the period of that in seconds. From an hour on a window
# counts besides the pace; of the two short request rates, without tolerance, the tighter one implies the other.
_METERED: tuple[tuple[str, Unit, str, int], ...] = (
    ("r", "request", "requests_per_second", 1),
    ("r", "request", "requests_per_minute", 60),
    ("t", "tokens", "tokens_per_minute", 60),
    ("i", "input", "input_tokens_per_minute", 60),
    ("o", "output", "output_tokens_per_minute", 60),
    ("rh", "request", "requests_per_hour", HOUR_S),
    ("rd", "request", "requests_per_day", DAY_S),
    ("td", "tokens", "tokens_per_day", DAY_S),
)


def dimensions(limits: Limits) -> tuple[Dimension, ...]:
    """What a pacer meters for these limits; empty when no rate is known. Concurrency stands apart."""
    found: dict[str, Dimension] = {}
    for name, unit, stated, period_s in _METERED:
        amount = getattr(limits, stated)
        if amount is None:
            continue
        if period_s >= HOUR_S:
            dim = Dimension(name, unit, amount / period_s, period_s * BURST_SHARE, period_s, amount)
        else:
            dim = Dimension(name, unit, amount / period_s, 0.0 if unit == "request" else TOKEN_TOLERANCE_S)
        if name not in found or dim.rate < found[name].rate:
            found[name] = dim
    return tuple(found.values())


def request_rate(dims: Iterable[Dimension]) -> float | None:
    """Requests per second that the tightest of these allows; None when only tokens are limited."""
    return min((dim.rate for dim in dims if dim.unit == "request"), default=None)


def start_utilisation(limits: Limits) -> tuple[float, float]:
    """(where the share of a limit that is used starts, the most that it may reach)."""
    if not limits.hard_second:
        return UTILISATION, UTILISATION_MAX
    rate = limits.requests_per_second_bound or 0.0
    fixed = UTILISATION_HARD_SECOND_FAST if rate >= 100 else UTILISATION_HARD_SECOND
    return fixed, fixed + 0.005


_RATE_FIELDS = frozenset(f.name for f in fields(Limits) if "_per_" in f.name)
_TOKEN_FIELDS = tuple(name for name in _RATE_FIELDS if "tokens_per_" in name)
