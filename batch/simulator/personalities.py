"""Who the simulator plays: one vendor's documented parameters, refusals, headers and error shape.

Owns: Personality and reading personalities.toml. Written from the vendors' pages, apart from the
presets of batch/providers, so that one can test the other.
May not touch: requests. A personality is data; checks.py and errors.py obey it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from batch.simulator.config import Behaviour

OPENAI_KEYS = frozenset({
    "messages", "model", "audio", "frequency_penalty", "presence_penalty", "function_call", "functions",
    "logit_bias", "logprobs", "top_logprobs", "max_completion_tokens", "max_tokens", "metadata", "modalities",
    "moderation", "n", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "reasoning_effort", "response_format", "safety_identifier", "user", "seed",
    "service_tier", "stop", "store", "stream", "stream_options", "temperature", "top_p", "tool_choice", "tools",
    "verbosity", "web_search_options",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Personality:
    """One vendor. `default` is the behaviour of OpenAI keys without a row, `unknown_keys` of all others.

    `seed_per_choice`: a seeded n > 1 gives choice i the seed + i ("plus_index"), the same seed ("same") or
    mixes the index in ("index"). `served_suffix` is added to the model's name in answers. `errors` and
    `headers` name shapes in errors.py and headers.py. `slots` and `queue_max` make it queue as an engine does.
    """

    name: str
    models: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("/v1",)
    default: Behaviour = "native"
    unknown_keys: Behaviour = "ignored"
    features: Mapping[str, Behaviour] = field(default_factory=dict)
    rules: tuple[tuple[re.Pattern[str], Mapping[str, Behaviour]], ...] = ()  # features of the models that match
    n_max: int = 128
    n_with_temperature_0: Behaviour = "native"
    seed_field: str = "seed"
    seed_per_choice: Literal["plus_index", "same", "index"] = "plus_index"
    temperature_max: float = 2.0
    top_logprobs_max: int = 20
    no_combine: str = ""
    errors: str = "openai"
    headers: str = "none"
    validation_status: int = 400
    bad_key_status: int = 401
    request_id_header: str | None = "x-request-id"
    response_headers: Mapping[str, str] = field(default_factory=dict)
    served_suffix: str = ""
    reasoning_models: re.Pattern[str] | None = None
    reasoning_outside_completion: bool = False
    empty_finish_on_tools: bool = False
    cached_answers: bool = False
    leading_blank_lines: bool = False  # kept-alive answers begin with empty lines
    cost_in_ticks: bool = False        # usage.cost_in_usd_ticks
    metrics: str | None = None
    slots: int | None = None
    queue_max: int | None = None
    full_status: int = 503

    def behaviour(self, feature: str, model: str) -> Behaviour:
        """What becomes of one body key or feature for one model."""
        for models, features in self.rules:
            if feature in features and models.search(model):
                return features[feature]
        if feature in self.features:
            return self.features[feature]
        if feature in OPENAI_KEYS or feature in {"json_schema", "json_object"}:
            return self.default
        return self.unknown_keys

    def reasons(self, model: str) -> bool:
        return self.reasoning_models is not None and self.reasoning_models.search(model) is not None


def personality(name: str) -> Personality:
    """Raises ValueError with the names there are."""
    known = load_personalities()
    if name not in known:
        raise ValueError(f"personality {name!r} is unknown; there are {', '.join(sorted(known))}")
    return known[name]


@cache
def load_personalities() -> dict[str, Personality]:
    text = (Path(__file__).parent / "personalities.toml").read_text(encoding="utf-8")
    return {name: _read(name, table) for name, table in tomllib.loads(text).items()}


def _read(name: str, table: dict[str, Any]) -> Personality:
    values = dict(table)
    values["rules"] = tuple((re.compile(rule["models"]), rule["features"]) for rule in table.get("rules", ()))
    for key in ("models", "prefixes"):
        if key in table:
            values[key] = tuple(table[key])
    if "reasoning_models" in table:
        values["reasoning_models"] = re.compile(table["reasoning_models"])
    return Personality(name=name, **values)
