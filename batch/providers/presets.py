"""Presets: what is known of each provider before the first call, as data.

Owns: the shape of a preset (presets/NAME.toml, one file per provider), loading and checking it.
May not touch: keys, the network. Adding a provider is adding a file; docs/providers.md shows how.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from batch.completions.cards import Card, Support
from batch.completions.parameters import OPENAI_KEYS
from batch.domain.errors import InvalidConfiguration
from batch.domain.limits import Charge
from batch.settings import MAX_ATTEMPTS, nearest

PRESETS_DIR = Path(__file__).parent / "presets"

BODY_KEYS = tuple(sorted(OPENAI_KEYS - {"model", "messages"}))
_OF_THE_CATALOG = ("provider", "model", "support", "default")
FEATURES = ("json_schema", "json_object", "vision", "audio", "files", "stream_usage")  # besides body keys


def check_feature(name: str) -> None:
    """Raises ValueError, with the nearest known name, for a capability row about nothing we know."""
    known = (*BODY_KEYS, *FEATURES)
    if name not in known:
        raise ValueError(f"{name}: no such capability{nearest(name, known)}")


def _known_features(rows: dict[str, Support]) -> dict[str, Support]:
    for name in rows:
        check_feature(name)
    return rows


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
SupportRows = Annotated[dict[str, Support], AfterValidator(_known_features)]


def fits(pattern: str | None, model: str) -> bool:
    """Whether what holds for `pattern` holds for `model`; no pattern holds for all."""
    return pattern is None or re.search(pattern, model) is not None


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def given(self) -> dict[str, Any]:
        """The fields that say something, without the pattern of the models that they hold for."""
        names = (name for name in type(self).model_fields if name != "match")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class Auth(Strict):
    """How the key is sent: `header: scheme key`. `env` is the variable that zero configuration reads."""

    env: str | None = None
    header: str = "authorization"
    scheme: str = "Bearer"
    required: bool = True


_CARD: dict[str, Any] = {
    name: (hint | None, Field(default=None, ge=1) if int in (hint, *get_args(hint)) else None)
    for name, hint in get_type_hints(Card).items()
    if name not in _OF_THE_CATALOG
}


class CardFields(create_model("_CardFields", __base__=Strict, **_CARD)):  # type: ignore[misc]
    """The fields of completions.cards.Card that a preset, a model row or a configuration may set."""


class LimitFields(Strict):
    """Limits as facts; None is unknown. Units as in domain.limits.Limits."""

    requests_per_second: float | None = Field(default=None, gt=0)
    requests_per_minute: float | None = Field(default=None, gt=0)
    requests_per_hour: float | None = Field(default=None, gt=0)
    requests_per_day: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_day: float | None = Field(default=None, gt=0)
    input_tokens_per_minute: float | None = Field(default=None, gt=0)
    output_tokens_per_minute: float | None = Field(default=None, gt=0)
    concurrency: int | None = Field(default=None, ge=1)
    charge: Charge | None = None
    hard_second: bool | None = None
    start_concurrency: int | None = Field(default=None, ge=1)
    scope: Literal["model", "key"] | None = None


class ModelRow(Strict):
    """What holds only for models whose id matches the regular expression. Later rows win."""

    match: Pattern
    support: SupportRows = {}
    card: CardFields = CardFields()
    limits: LimitFields = LimitFields()


class PlanLimits(LimitFields):
    """Limits of a plan; with `match`, only for models whose id matches."""

    match: Pattern | None = None


class Plan(Strict):
    note: str = ""
    limits: tuple[PlanLimits, ...] = Field(min_length=1)


class RateHeaders(Strict):
    """How to read rate-limit headers. Periods say what an unsuffixed "requests" or "tokens" counts over."""

    family: Literal["openai", "anthropic", "cerebras", "fireworks", "together", "none"] = "openai"
    requests: Literal["second", "minute", "hour", "day", "unknown"] = "minute"
    tokens: Literal["second", "minute", "hour", "day", "unknown"] = "minute"


class ErrorRules(Strict):
    """Provider-specific rows of the error table (providers/classify.py); all are optional."""

    quota_codes: tuple[str, ...] = ()
    bad_key_in_400: Pattern | None = None     # regular expression on the message of a 400
    rate_codes: tuple[str, ...] = ()
    context: tuple[Pattern, ...] = ()      # regular expressions on the message
    overloaded_statuses: tuple[int, ...] = ()
    concurrency_429: bool = False          # every plain 429 is about calls in flight
    dynamic_429: bool = False              # every plain 429 is about ramping too fast
    schema_statuses: tuple[int, ...] = ()  # the provider's own check of structured output failed
    forbidden_is_content: bool = False     # a 403 may be about this line's content
    budget_reset: str | None = None        # dotted path to the instant when a 402's budget starts anew
    daily_reset_zone: str | None = None    # a daily quota ends at midnight in this time zone


class CostSource(Strict):
    """Where an answer tells its own price: a response header, or a dotted path in `usage`, times `scale`."""

    header: str | None = None
    usage: str | None = None
    scale: float = 1.0


class EngineFacts(Strict):
    """What a self-hosted engine offers besides completions. Paths are relative to the server's root."""

    health_path: str | None = None
    health_timeout_s: float = 5.0
    load_path: str | None = None
    metrics_path: str | None = None
    waiting_gauge: str | None = None
    running_gauge: str | None = None
    cache_gauge: str | None = None
    preempted_counter: str | None = None
    tokens_counter: str | None = None  # grows while it generates; one that stands still is stuck
    version_path: str | None = None
    slots_path: str | None = None


class Preset(Strict):
    """One provider. `models` is a regular expression over ids that this provider, and no aggregator, owns."""

    name: str
    title: str
    kind: Literal["hosted", "gateway", "engine", "generic"] = "hosted"
    base_url: str | None = None
    base_url_hint: str = ""
    auth: Auth = Auth()
    headers: dict[str, str] = {}
    models: Pattern | None = None
    owns_slugs: bool = False  # "@slug" models are this provider's
    max_attempts: int = Field(default=MAX_ATTEMPTS, ge=1)  # of a line, unless its batch says otherwise
    prices: str | None = None  # the provider's id in the genai-prices package
    support: SupportRows = {}
    default: Support = Support.UNLISTED
    card: CardFields = CardFields()
    model_rows: tuple[ModelRow, ...] = ()
    limits: LimitFields = LimitFields()
    plan: str | None = None
    plans: dict[str, Plan] = {}
    rate_headers: RateHeaders = RateHeaders()
    errors: ErrorRules = ErrorRules()
    capture_headers: tuple[str, ...] = ()
    header_aliases: dict[str, str] = {}
    cost: CostSource | None = None
    engine: EngineFacts | None = None
    notes: tuple[str, ...] = ()

    def owns(self, model: str) -> bool:
        """True when the pattern says that this id is this provider's own."""
        return self.models is not None and fits(self.models, model)


@cache
def preset_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in PRESETS_DIR.glob("*.toml")))


@cache
def load_preset(name: str) -> Preset:
    """The preset called `name`, or the one in the file `name` when it ends in .toml. Raises InvalidConfiguration,
    which names the nearest preset.

    A file of one's own may say `extends = "xai"`: then it holds only what differs.
    """
    is_file = name.endswith(".toml")
    if not is_file and name not in preset_names():
        hint = nearest(name, preset_names()) or f"; there are: {', '.join(preset_names())}"
        raise InvalidConfiguration(f"preset {name}: no such preset{hint}", param="preset")
    path = Path(name) if is_file else PRESETS_DIR / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidConfiguration(f"preset {name}: {error}", param="preset") from None
    extended = values.pop("extends", None)
    if extended is not None:
        values = _merged(load_preset(str(extended)).model_dump(exclude_unset=True), values)
    return parse_preset(values, str(values.pop("name", path.stem)), path.name)


def _merged(values: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key; anything else, lists too, is replaced."""
    for key, value in over.items():
        held = values.get(key)
        values[key] = _merged(held, value) if isinstance(held, dict) and isinstance(value, Mapping) else value
    return values


def parse_preset(values: Mapping[str, Any], name: str, place: str) -> Preset:
    """A checked preset. Raises InvalidConfiguration with one line per fault: file, key, reason, nearest key."""
    try:
        preset = Preset.model_validate({"name": name, **values})
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        raise InvalidConfiguration("\n".join(_explain(fault, place) for fault in faults)) from None
    if preset.plan is not None and preset.plan not in preset.plans:
        raise InvalidConfiguration(f"{place}: plan: no plan called {preset.plan}")
    return preset


def _explain(fault: Any, place: str) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location)
    if fault["type"] != "extra_forbidden":
        return f"{place}: {key}: {fault['msg'].removeprefix('Value error, ')}"
    parents: dict[str, type[BaseModel]] = {
        "auth": Auth, "card": CardFields, "limits": LimitFields, "errors": ErrorRules, "cost": CostSource,
        "engine": EngineFacts, "rate_headers": RateHeaders, "model_rows": ModelRow,
    }  # fmt: skip
    parent = next((parents[part] for part in reversed(location[:-1]) if part in parents), Preset)
    return f"{place}: {key}: no such key{nearest(location[-1], parent.model_fields)}"
