"""One HTTP call's body, from a plan.

Owns: Call, and composing its bytes: n, the derived seed, the rung of structured output, cache bypass in
fan-out, the re-ask's messages. May not touch: sending, answers. Pure.
Seeds: choice i gets (seed + i) mod 2^63; its k-th re-ask gets (seed + 1,000,000 × k + i) mod 2^63.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from batch.completions.cards import SchemaMode, Support
from batch.completions.choices import ChoiceState
from batch.completions.ladder import apply_rung
from batch.completions.plan import SEED_MODULUS, Plan
from batch.completions.reask import with_reask
from batch.completions.rules import CHAT

_REASK_STRIDE = 1_000_000


@dataclass(slots=True, eq=False)
class Call:
    """`body` is ready to send. `indices` are the choices that it answers. `share` is their part of the
    line's estimated output (each call carries the whole prompt). `stream`: the answer will be SSE.
    `plan` is the one it was made from."""

    body: bytes = field(repr=False)  # prompts stay out of logs
    plan: Plan = field(repr=False)
    indices: tuple[int, ...] = (0,)
    seed: int | None = None
    share: float = 1.0
    reask: bool = False
    rung: SchemaMode | None = None
    stream: bool = False


def compose(
    plan: Plan, raw_body: bytes, indices: tuple[int, ...], rung: SchemaMode | None, choice: ChoiceState
) -> Call:
    """A call for the choices `indices`. `choice` is the first of them: once it was asked, caches are bypassed."""
    share = len(indices) / plan.n
    whole = len(indices) == plan.n
    if plan.verbatim and whole and choice.asked == 0 and rung == plan.rung:
        return Call(raw_body, plan, indices, plan.seed, share, rung=rung)
    body = dict(plan.base)
    if plan.endpoint != CHAT:
        return Call(orjson.dumps(body), plan, indices, share=share)
    seed = _derive_seed(plan, indices[0], choice.reseeds)
    if seed is not None and plan.seed_field is not None:
        body[plan.seed_field] = seed
    if len(indices) > 1:
        body["n"] = len(indices)
    if plan.shape is not None and rung is not None:
        apply_rung(body, plan.card, plan.shape, rung)
    if choice.reask is not None:
        body["messages"] = with_reask(body["messages"], choice.reask, plan.shape, rung)
    if choice.grown_to is not None:
        body[plan.card.max_tokens_field] = choice.grown_to
    if not whole or choice.asked:
        _bypass_cache(body, plan.card.cache_bypass)
    if plan.card.stream:
        body["stream"] = True
        if plan.card.of("stream_usage") not in (Support.REJECTED, Support.IGNORED):
            body["stream_options"] = {"include_usage": True}
    return Call(orjson.dumps(body), plan, indices, seed, share, choice.reask is not None, rung, plan.card.stream)


def _derive_seed(plan: Plan, index: int, reseeds: int) -> int | None:
    if plan.seed is None or plan.seed_field is None:
        return None
    if index == 0 and reseeds == 0:
        return plan.seed
    return (plan.seed + _REASK_STRIDE * reseeds + index) % SEED_MODULUS


def _bypass_cache(body: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for key, value in overrides.items():
        own = body.get(key)
        body[key] = {**own, **value} if isinstance(own, dict) and isinstance(value, Mapping) else value
