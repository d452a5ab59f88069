"""What the simulator is told to be: latency, limits, faults, keys, features, personality.

Owns: SimulatorConfig and its parts, and reading them from JSON or TOML. Frozen: a running
simulator is changed by replacing the whole (Simulator.reconfigure, POST /control).
May not touch: sockets. Seconds and tokens are plain numbers, their unit in the name.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LimitedThing = Literal["requests", "tokens", "input_tokens", "output_tokens", "concurrency"]
LimiterKind = Literal["token_bucket", "fixed_window"]
Charge = Literal["reserve_max", "reserve_refund", "actual", "input_only"]
RetryAfterForm = Literal[
    "none", "seconds", "float", "date", "ms", "zero", "negative", "garbage", "body_text", "retry_info", "reset"
]
Behaviour = Literal["native", "ignored", "rejected"]

# an HTTP error, in the personality's shape
HTTP_FAULTS = frozenset({
    "rate_limit", "status", "quota", "daily", "budget", "bad_key", "forbidden", "model_not_found", "context_length",
    "content_policy", "overloaded", "unavailable", "schema_failed", "error_in_200",
})  # fmt: skip
TRANSPORT_FAULTS = frozenset({
    "hang", "reset", "slow_body", "reset_mid_body", "truncated_json", "html", "empty_body", "redirect",
})  # fmt: skip
# HTTP 200 that is not what was asked for
CONTENT_FAULTS = frozenset({
    "wrong_n", "no_choices", "null_content", "invalid_json", "schema_violation", "refusal", "content_filter", "length",
})  # fmt: skip
FAULT_KINDS = HTTP_FAULTS | TRANSPORT_FAULTS | CONTENT_FAULTS


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from request to answer: `kind` constant (a), uniform (a..b), exponential (mean a),
    lognormal (median a, p99 b). Time per token comes on top of it (SimulatorConfig.tokens_per_s)."""

    kind: Literal["constant", "uniform", "exponential", "lognormal"] = "constant"
    a: float = 0.0
    b: float = 0.0

    def draw(self, fraction: float, gaussian: float) -> float:
        """Seconds, from a uniform number in [0, 1) and a standard normal one."""
        if self.kind == "constant":
            return self.a
        if self.kind == "uniform":
            return self.a + (self.b - self.a) * fraction
        if self.kind == "exponential":
            return -self.a * math.log(1.0 - fraction)
        sigma = math.log(max(self.b, self.a) / self.a) / 2.326 if self.a > 0 else 0.0
        return self.a * math.exp(sigma * gaussian)

    @classmethod
    def parse(cls, text: str) -> Latency:
        """ "0.2", "uniform:0.1,0.5", "exponential:0.3", "lognormal:0.4,2" (median, p99)."""
        kind, _, rest = text.rpartition(":")
        try:
            numbers = [float(part) for part in rest.split(",")]
            return cls(kind or "constant", *numbers)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ValueError(
                f"latency {text!r}: write seconds, uniform:a,b, exponential:mean or lognormal:median,p99"
            ) from None


@dataclass(frozen=True, slots=True)
class Limit:
    """`amount` of `what` per `per_s` seconds, for each key (and model, if `scope` says so).

    `over_s` is how it is enforced: the depth of the bucket or the length of the fixed window, by default
    `per_s`. So 600 a minute enforced second by second is Limit("requests", 600, kind="fixed_window", over_s=1).
    `charge` says what a request costs in tokens when it is admitted and after it is answered.
    """

    what: LimitedThing
    amount: float
    per_s: float = 60.0
    kind: LimiterKind = "token_bucket"
    over_s: float | None = None
    charge: Charge = "reserve_max"
    scope: Literal["key", "model"] = "key"

    @property
    def window_s(self) -> float:
        return self.over_s or self.per_s

    @property
    def capacity(self) -> float:
        return self.amount if self.what == "concurrency" else self.amount * self.window_s / self.per_s


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, and when.

    When: `rate` is a share of requests (0..1); `on` are request numbers, from 0, as they arrive;
    neither means always. Both only among requests whose body contains `contains` and not `unless`, which are
    the first `first` attempts at the same messages and seed, and while fewer than `times` were hit. `sticky`
    draws by content instead of arrival: the same request fails every time.
    What: `kind` from FAULT_KINDS, with `status`, `retry_after_s` in the form `retry_after`, and `seconds` for
    what takes time.
    """

    kind: str
    rate: float | None = None
    on: tuple[int, ...] = ()
    contains: str | None = None
    unless: str | None = None
    first: int | None = None
    times: int | None = None
    sticky: bool = False
    status: int | None = None
    retry_after: RetryAfterForm = "seconds"
    retry_after_s: float = 1.0
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS:
            raise ValueError(f"fault {self.kind!r} is unknown; there are {', '.join(sorted(FAULT_KINDS))}")


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """Everything the simulator can be told; the defaults answer at once and refuse nothing.

    `features` overrides the personality per body key ("n", "seed", "json_schema", …). `models` are listed
    beside the personality's; any is answered. `valid_keys` empty accepts any key; `invalid_keys` are refused
    even then. `unseeded` "fresh" lets requests without a seed differ from each other. `slots` requests run at
    once and `queue_max` wait, as in an engine. `headers` is a family of rate-limit headers besides the
    personality's own.
    """

    host: str = "127.0.0.1"
    port: int = 0
    personality: str = "openai"
    models: tuple[str, ...] = ()
    latency: Latency = Latency()
    tokens_per_s: float | None = None
    answer_tokens: int = 40
    limits: tuple[Limit, ...] = ()
    headers: str | None = None
    faults: tuple[Fault, ...] = ()
    features: tuple[tuple[str, Behaviour], ...] = ()
    unseeded: Literal["same", "fresh"] = "same"
    valid_keys: tuple[str, ...] = ()
    invalid_keys: tuple[str, ...] = ()
    slots: int | None = None
    queue_max: int | None = None
    seed: int = 1
    log_path: Path | None = None
    log_bodies: bool = False
    keep_log: bool = True  # the in-memory witness; off for long benchmarks

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> SimulatorConfig:
        """From plain JSON or TOML values; unknown keys are errors that name what there is."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{', '.join(unknown)}: no such simulator setting; there are {', '.join(sorted(known))}")
        return cls(**{name: _converted(name, value) for name, value in values.items()})

    @classmethod
    def from_file(cls, path: Path) -> SimulatorConfig:
        """`.toml` or `.json`."""
        text = path.read_text(encoding="utf-8")
        return cls.from_mapping(tomllib.loads(text) if path.suffix == ".toml" else json.loads(text))

    def replace(self, **changes: Any) -> SimulatorConfig:
        return dataclasses.replace(self, **changes)


def _converted(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "latency":
        return Latency(**value) if isinstance(value, dict) else Latency.parse(str(value))
    if name == "limits":
        return tuple(Limit(**item) for item in value)
    if name == "faults":
        return tuple(read_fault(item) for item in value)
    if name == "features":
        return tuple(value.items())
    if name == "log_path":
        return Path(value)
    return tuple(value) if name in {"models", "valid_keys", "invalid_keys"} else value


def read_fault(values: dict[str, Any]) -> Fault:
    """Raises ValueError that names what there is."""
    known = {f.name for f in dataclasses.fields(Fault)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"fault: no such key {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return Fault(**{**values, "on": tuple(values.get("on", ()))})
