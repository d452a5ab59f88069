"""Providers as they are now: limits and where each was learned, use, in flight, waiting, pauses, errors.

Owns: the shape that GET /v1/providers and `batchmill providers --live` show (view_providers' docstring).
Workers report by `workers.facts["lanes"][lane id]`, lanes by their rows. May not touch: any row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from batch.completions.tokens import Ratios
from batch.domain.limits import Limits
from batch.operations.eta import lane_facts
from batch.operations.world import World
from batch.providers.provider import Provider
from batch.storage.explain import LaneWork, lane_work
from batch.storage.workers import WorkerRow, live_workers


def view_providers(world: World) -> list[dict[str, Any]]:
    """Every configured provider, and those of lanes that are configured no more; by name. Times are Unix seconds.

    {provider, title, engine, base_urls, configured, missing_key, models: [{model, limits: [{name, value, source}],
    charge, share_used, in_flight, window, waiting, ready_lines, leased_lines, calls, refused, share_429,
    paused: null | {until, code, reason}, is_down, estimate_error: {input, output}, local_pace}],
    replicas: [{base_url, up, reason, in_flight, tokens, running, waiting, cache_used, version, models}]}
    A number that nobody knows is null: `share_used` without a known limit, `share_429` before the first call.
    """
    with world.db.read() as conn:
        now_ms = world.db.now(conn)
        work = lane_work(conn)
        live = live_workers(conn)
    names = sorted({*world.catalog.providers, *(lane.provider for lane in work)})
    return [_view_provider(world, name, [w for w in work if w.provider == name], live, now_ms) for name in names]


def _view_provider(
    world: World, name: str, work: Sequence[LaneWork], live: Sequence[WorkerRow], now_ms: int
) -> dict[str, Any]:
    provider = world.catalog.providers.get(name)
    return {
        "provider": name,
        "title": provider.preset.title if provider else name,
        "engine": provider.engine if provider else None,
        "base_urls": list(provider.base_urls) if provider else [],
        "configured": provider is not None,
        "missing_key": provider.missing_key if provider else None,
        "models": [_view_lane(provider, lane, live, now_ms) for lane in work],
        "replicas": _view_replicas(live, name),
    }


def _view_replicas(live: Sequence[WorkerRow], name: str) -> list[dict[str, Any]]:
    """An engine's replicas by address; what workers have in flight there is added up, the rest is anyone's."""
    found: dict[str, dict[str, Any]] = {}
    for worker in live:
        engine = (worker.facts.get("engines") or {}).get(name) or {}
        for row in engine.get("replicas") or ():
            known = found.setdefault(row["base_url"], {**row, "in_flight": 0, "tokens": 0})
            known |= {key: known[key] + row[key] for key in ("in_flight", "tokens")}
            if not row["up"]:
                known |= {"up": False, "reason": row["reason"]}
            if row["running"] is not None:
                known |= {key: row[key] for key in ("running", "waiting", "cache_used")}
    return list(found.values())


def _view_lane(provider: Provider | None, lane: LaneWork, live: Sequence[WorkerRow], now_ms: int) -> dict[str, Any]:
    limits = provider.limits(lane.model, lane.learned) if provider else Limits()
    facts = lane_facts(live, lane.id)
    calls, refused = _total(facts, "calls"), _total(facts, "refused")
    paused_until = lane.paused_until if lane.is_paused(now_ms) else None
    ratios = Ratios.from_json(lane.learned.get("tokens"))
    return {
        "model": lane.model,
        "limits": [*list_limits(limits), *_list_found(facts)],
        "charge": limits.charge,
        "share_used": _share_used(facts),
        "in_flight": _total(facts, "in_flight"),
        "window": _total(facts, "window") or None,
        "waiting": _total(facts, "waiting"),
        "ready_lines": lane.ready_lines,
        "leased_lines": lane.leased_lines,
        "calls": calls,
        "refused": refused,
        "share_429": round(refused / calls, 5) if calls else None,
        "paused": None
        if paused_until is None
        else {"until": paused_until / 1000, "code": lane.pause_code, "reason": lane.pause_reason},
        "is_down": bool(facts) and all(fact.get("is_down") for fact in facts),
        "estimate_error": {"input": _rounded(ratios.input_error), "output": _rounded(ratios.output_error)},
        "local_pace": any(fact.get("local") for fact in facts),
    }


def _list_found(facts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the workers found by trying; all of them hold the same."""
    found: dict[str, Any] = next((fact["found"] for fact in facts if fact.get("found")), {})
    return [{"name": name, "value": value, "source": "probe"} for name, value in found.items()]


def _share_used(facts: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the tightest limit, by all workers together, over their last heartbeat."""
    used: Counter[str] = Counter()
    for fact in facts:
        used.update(fact.get("used") or {})
    return _rounded(max(used.values())) if used else None


def list_limits(limits: Limits) -> list[dict[str, Any]]:
    """[{name, value, source}] of the known limits; source is "config", "preset", "headers" or "probe"."""
    values = limits.to_json()
    return [
        {"name": name, "value": value, "source": limits.sources.get(name, "preset")}
        for name, value in values.items()
        if "_per_" in name or name == "concurrency"
    ]


def _total(facts: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(int(fact.get(name) or 0) for fact in facts)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
