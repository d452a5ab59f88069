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
from batch.completions.ladder import apply_rung
from batch.completions.plan import SEED_MODULUS, Plan
from batch.completions.reask import Reask, with_reask
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

    def estimate(self, input_tokens: int, output_tokens: int) -> int:
        """Tokens to reserve, from the line's estimates (`output_tokens` for all n choices together)."""
        return input_tokens + int(output_tokens * self.share)


def compose(
    plan: Plan,
    raw_body: bytes,
    indices: tuple[int, ...],
    rung: SchemaMode | None,
    *,
    reask: Reask | None = None,
    asked: int = 0,
    reseeds: int = 0,
    max_tokens: int | None = None,
) -> Call:
    """`asked` counts answers to these choices before this one: above 0 caches are bypassed. `reseeds` counts
    the answers that a new seed must get away from."""
    share = len(indices) / plan.n
    whole = len(indices) == plan.n
    if plan.verbatim and whole and asked == 0 and rung == plan.rung and max_tokens is None:
        return Call(raw_body, plan, indices, plan.seed, share, rung=rung)
    body = dict(plan.base)
    if plan.endpoint != CHAT:
        return Call(orjson.dumps(body), plan, indices, share=share)
    seed = _derive_seed(plan, indices[0], reseeds)
    if seed is not None and plan.seed_field is not None:
        body[plan.seed_field] = seed
    if len(indices) > 1:
        body["n"] = len(indices)
    if plan.shape is not None and rung is not None:
        apply_rung(body, plan.card, plan.shape, rung)
    if reask is not None:
        body["messages"] = with_reask(body["messages"], reask, plan.shape, rung)
    if max_tokens is not None:
        body[plan.card.max_tokens_field] = max_tokens
    if not whole or asked:
        _bypass_cache(body, plan.card.cache_bypass)
    if plan.card.stream:
        body["stream"] = True
        if plan.card.of("stream_usage") not in (Support.REJECTED, Support.IGNORED):
            body["stream_options"] = {"include_usage": True}
    return Call(
        orjson.dumps(body),
        plan,
        indices,
        seed if plan.seed_field else None,
        share,
        reask is not None,
        rung,
        plan.card.stream,
    )


def touches_own_cache_key(plan: Plan, *, reasked: bool) -> list[str]:
    """Keys of the caller's own body that a cache bypass overrode, for the line's note."""
    return [key for key in plan.card.cache_bypass if key in plan.base] if plan.fans_out or reasked else []


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
