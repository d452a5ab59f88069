"""What one lane may send: limits as facts, with where each was learned.

Owns: Limits. Made by providers/ from presets, batchmill.toml and headers; obeyed by workers/pacer.py.
Rates are per the unit in the name; tokens count as `charge` says (PACING in docs/architecture.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

Charge = Literal["reserve_max", "reserve_refund", "actual", "input_only"]


@dataclass(frozen=True, slots=True)
class Limits:
    """None means unknown. `sources` says per field: "config", "preset", "headers" or "probe".

    `hard_second`: the provider counts in fixed seconds (pace at 0.97 below 100 requests/s, else 0.98).
    `adaptive`: no limit is known; adaptive concurrency starting at `start_concurrency` finds it.
    `scope`: whether the numbers hold for each model or for the key as a whole.
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

    @property
    def has_rate(self) -> bool:
        """True when any requests-or-tokens rate is known (then concurrency is only a safety net)."""
        return any(getattr(self, f.name) is not None for f in fields(self) if "_per_" in f.name)

    @property
    def requests_per_second_bound(self) -> float | None:
        """The tightest of the request rates, as requests per second."""
        rates = [
            rate / seconds
            for rate, seconds in (
                (self.requests_per_second, 1.0),
                (self.requests_per_minute, 60.0),
                (self.requests_per_hour, 3600.0),
                (self.requests_per_day, 86_400.0),
            )
            if rate is not None
        ]
        return min(rates) if rates else None

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
