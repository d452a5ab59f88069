"""The capability card: what one provider does with each feature for one model.

Owns: Support (four-valued) and Card. Filled from presets, batchmill.toml, probes and learned
demotions by providers/; read by completions/plan.py. Pure data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal


class Support(StrEnum):
    NATIVE = "native"      # does it; answers are verified all the same
    IGNORED = "ignored"    # accepts it with 200 and does nothing: emulate
    REJECTED = "rejected"  # answers 4xx: emulate, else a validation error
    UNLISTED = "unlisted"  # the provider's page does not say: n and response_format emulated, others sent and verified


SchemaMode = Literal["strict", "schema", "tool", "json_object", "prompt"]


@dataclass(frozen=True, slots=True)
class Card:
    """One provider's abilities for one model.

    `support` has a row per OpenAI body key ("n", "seed", "stop", "logprobs", "tools", "tool_choice",
    "presence_penalty", …) and per feature: "json_schema", "json_object", "vision", "audio", "files",
    "stream_usage". A missing row is `default`. `schema_mode` is the highest rung of the ladder that is
    native here; None leaves it to support["json_schema"]. `json_with_tools`: one call may hold a response
    format and tools. `strip` are dotted paths removed before sending ("tools.function.strict", "messages.name").
    `inject` are body keys always added; `cache_bypass` those of fan-outs and re-asks, whose answers must differ.
    `seed_per_choice`: native n gives choice i the seed `seed + i`; elsewhere a seeded n > 1 is fanned out.
    """

    provider: str
    model: str
    support: Mapping[str, Support] = field(default_factory=dict)
    default: Support = Support.UNLISTED
    n_max: int = 128
    n_with_temperature_0: Support = Support.NATIVE
    seed_field: str = "seed"
    seed_per_choice: bool = False
    max_tokens_field: str = "max_tokens"
    stop_max: int = 4
    top_logprobs_max: int = 20
    temperature_max: float = 2.0
    tool_choice_required: str = "required"
    schema_mode: SchemaMode | None = None
    json_with_tools: bool = True
    strip: tuple[str, ...] = ()
    unknown_keys: Literal["pass", "drop"] = "pass"
    inject: Mapping[str, Any] = field(default_factory=dict)
    cache_bypass: Mapping[str, Any] = field(default_factory=dict)
    fanout_when: tuple[str, ...] = ()  # "file_parts", "search": n is not native with file attachments, web search
    stream: bool = False  # ask for SSE and fold
    context_tokens: int | None = None
    max_output_tokens: int | None = None

    def of(self, feature: str) -> Support:
        return self.support.get(feature, self.default)

    def is_native(self, feature: str) -> bool:
        return self.of(feature) is Support.NATIVE

    def with_support(self, rows: Mapping[str, Support]) -> Card:
        """This card with what was learned. A maximum refused under one name goes by the other from then on."""
        support = {**self.support, **rows}
        field = self.max_tokens_field
        other = "max_tokens" if field == "max_completion_tokens" else "max_completion_tokens"
        refused = support.get(field) is Support.REJECTED and support.get(other) is not Support.REJECTED
        return replace(self, support=support, max_tokens_field=other if refused else field)
