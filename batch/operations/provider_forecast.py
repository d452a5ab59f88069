"""Forecast what a file will take at each provider: calls, tokens, cost, time, and which limit binds.

Owns: LaneForecast, the lines of one file that one provider's model will serve; estimates in, estimates
out. Serves check_input. May not touch: files, the database, the network.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from batch.completions.plan import Plan
from batch.completions.tokens import charged_tokens, max_output_tokens
from batch.domain.limits import Limits
from batch.domain.outcome import Usage
from batch.operations.warn_window import LaneLoad, forecast
from batch.providers.prices import Price

_UNITS = {"second": "s", "minute": "min", "hour": "h", "day": "day"}


@dataclass(slots=True)
class LaneForecast:
    """Tokens count every call of a fan-out; `charged_output` is what admission counts as output."""

    provider: str
    model: str
    plan: str | None
    limits: Limits
    price: Price | None
    missing_key: str | None
    lines: int = 0
    calls: int = 0
    calls_of_fan_out: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    charged_output: int = 0
    cost_usd: float = 0.0
    emulated: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    seeds_sent: int = 0
    seeds_unsent: int = 0

    def add(self, plan: Plan, body: dict[str, Any], input_tokens: int, output_tokens: int) -> None:
        """Count one line; tokens are the line's own: one prompt, all choices."""
        calls = -(-plan.n // plan.group)
        limit = max_output_tokens(body)
        per_call = output_tokens * plan.group // plan.n
        charged, _ = charged_tokens(self.limits.charge, input_tokens, per_call, limit and limit * plan.group)
        self.lines += 1
        self.calls += calls
        self.calls_of_fan_out += calls if plan.fans_out else 0
        self.input_tokens += input_tokens * calls
        self.output_tokens += output_tokens
        self.charged_output += (charged - input_tokens) * calls
        self.emulated.update(plan.emulated)
        self.dropped.update(plan.dropped)
        self.ignored.update(plan.ignored)
        if plan.seed is not None:
            self.seeds_sent += plan.seed_field is not None
            self.seeds_unsent += plan.seed_field is None
        if self.price is not None:
            self.cost_usd += self.price.of(Usage(input_tokens * calls, 0, output_tokens))

    @property
    def load(self) -> LaneLoad:
        return LaneLoad(
            self.provider, self.model, self.limits, self.calls, self.input_tokens, self.charged_output
        )

    def to_json(self) -> dict[str, Any]:
        bound = forecast([self.load])
        return {
            "provider": self.provider,
            "model": self.model,
            "plan": self.plan,
            "missing_key": self.missing_key,
            "lines": self.lines,
            "calls": self.calls,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "limits": self.limits.to_json(),
            "cost_usd": None if self.price is None else round(self.cost_usd, 6),
            "seconds": bound and round(bound.seconds, 1),
            "binding_limit": bound and bound.limit,
            "emulated": dict(self.emulated),
            "dropped": dict(self.dropped),
            "ignored": dict(self.ignored),
            "seeds_sent": self.seeds_sent,
            "seeds_not_sent": self.seeds_unsent,
        }


def rate_words(limits: Limits) -> list[str]:
    """["100 requests/min", "10,000 tokens/min"]: the known rates, by window."""
    return [
        f"{value:,.0f} {limit_words(name)}"
        for unit in _UNITS
        for kind in ("requests", "tokens", "input_tokens", "output_tokens")
        if (value := getattr(limits, name := f"{kind}_per_{unit}", None)) is not None
    ]


def limit_words(name: str) -> str:
    """ "tokens_per_minute" → "tokens/min". """
    kind, _, unit = name.partition("_per_")
    return f"{kind.replace('_', ' ')}/{_UNITS[unit]}"
