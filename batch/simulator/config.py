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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, get_args

LimitedThing = Literal["requests", "tokens", "input_tokens", "output_tokens", "concurrency"]
LimiterKind = Literal["token_bucket", "fixed_window"]
Charge = Literal["reserve_max", "reserve_refund", "actual", "input_only"]
RetryAfterForm = Literal[
    "none", "seconds", "float", "date", "ms", "zero", "negative", "garbage", "body_text", "retry_info", "reset"
]
Behaviour = Literal["native", "ignored", "rejected"]
LatencyKind = Literal["constant", "uniform", "exponential", "lognormal"]

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

    kind: LatencyKind = "constant"
    a: float = 0.0
    b: float = 0.0

    def draw(self, fraction: float) -> float:
        """Seconds of what is not constant, for a uniform number in (0, 1)."""
        if self.kind == "uniform":
            return self.a + (self.b - self.a) * fraction
        if self.kind == "exponential":
            return -self.a * math.log(fraction)
        normal = NormalDist()
        sigma = math.log(max(self.b, self.a) / self.a) / normal.inv_cdf(0.99) if self.a > 0 else 0.0
        return self.a * math.exp(sigma * normal.inv_cdf(fraction))

    @classmethod
    def parse(cls, text: str) -> Latency:
        """ "0.2", "uniform:0.1,0.5", "exponential:0.3", "lognormal:0.4,2" (median, p99)."""
        kind, colon, rest = text.rpartition(":")
        try:
            latency = cls(kind if colon else "constant", *map(float, rest.split(",")))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            latency = None
        if latency is None or latency.kind not in get_args(LatencyKind):
            raise ValueError(f"latency {text!r}: write seconds, uniform:a,b, exponential:mean or lognormal:median,p99")
        return latency


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
    def from_mapping(cls, values: Mapping[str, Any]) -> SimulatorConfig:
        """The defaults with these values over them."""
        return cls().updated(values)

    @classmethod
    def from_file(cls, path: Path) -> SimulatorConfig:
        """`.toml` or `.json`."""
        text = path.read_text(encoding="utf-8")
        return cls.from_mapping(tomllib.loads(text) if path.suffix == ".toml" else json.loads(text))

    def updated(self, values: Mapping[str, Any]) -> SimulatorConfig:
        """With plain values of JSON, TOML or flags; unknown names are errors that tell what there is."""
        known = {f.name for f in dataclasses.fields(self)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{', '.join(unknown)}: no such simulator setting; there are {', '.join(sorted(known))}")
        return dataclasses.replace(self, **{name: _converted(name, value) for name, value in values.items()})


def _converted(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "latency":
        return Latency.parse(str(value))
    if name == "limits":
        return tuple(Limit(**item) for item in value)
    if name == "faults":
        return tuple(map(_fault, value))
    if name == "features":
        return tuple(_features(value.items() if isinstance(value, dict) else (text.split("=", 1) for text in value)))
    if name == "log_path":
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def _features(pairs: Iterable[Any]) -> Iterable[tuple[str, Behaviour]]:
    for name, *behaviour in pairs:
        if len(behaviour) != 1 or behaviour[0] not in get_args(Behaviour):
            raise ValueError(f"feature {name}: write {name}=native, {name}=ignored or {name}=rejected")
        yield name, behaviour[0]


def _fault(given: str | dict[str, Any]) -> Fault:
    """An object, the JSON of one, or KIND[:RATE][,key=value…]."""
    if isinstance(given, str) and not given.startswith("{"):
        first, *rest = given.split(",")
        kind, _, rate = first.partition(":")
        values: dict[str, Any] = {"kind": kind} | ({"rate": float(rate)} if rate else {})
        for part in rest:
            name, _, value = part.partition("=")
            values[name] = json.loads(value) if value[:1] in set("0123456789[-tf") else value
    else:
        values = json.loads(given) if isinstance(given, str) else given
    known = {f.name for f in dataclasses.fields(Fault)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"fault: no such key {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return Fault(**{**values, "on": tuple(values.get("on", ()))})
