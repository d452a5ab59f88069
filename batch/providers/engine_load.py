"""How busy a self-hosted engine says it is: gauges, slots, loads, response headers.

Owns: LoadReading and the readers of each form (docs/gpu.md lists which engine has which). A page or a
header that is not understood is None: the engine is then loaded by answers alone.
May not touch: the network (workers/engines.py asks), what follows from a reading (workers/concurrency.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from batch.providers.presets import EngineFacts

LOAD_HEADER = "endpoint-load-metrics"  # vLLM answers it where endpoint-load-metrics-format was sent


@dataclass(frozen=True, slots=True)
class LoadReading:
    """`running` and `waiting` are requests, `cache_used` 0 to 1; the other two only ever grow."""

    running: float
    waiting: float
    cache_used: float | None = None
    preempted: float | None = None
    tokens: float | None = None  # generated since the engine started


def read_metrics(page: str, facts: EngineFacts) -> LoadReading | None:
    """A Prometheus page. Samples of several models or schedulers are added; the fullest cache counts."""
    wanted = (
        facts.running_gauge, facts.waiting_gauge, facts.cache_gauge, facts.preempted_counter, facts.tokens_counter,
    )  # fmt: skip
    found: dict[str, list[float]] = {}
    for line in page.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in wanted:
            try:
                found.setdefault(name, []).append(float(line.rpartition("}")[2].split()[-1]))
            except (ValueError, IndexError):
                continue
    if facts.running_gauge not in found:
        return None
    running, waiting, cache, preempted, tokens = (found.get(name) if name else None for name in wanted)
    return LoadReading(
        sum(running or ()),
        sum(waiting or ()),
        max(cache) if cache else None,
        sum(preempted) if preempted else None,
        sum(tokens) if tokens else None,
    )


def read_slots(page: bytes, in_flight: int) -> LoadReading | None:
    """llama.cpp's /slots: who sits in none of them waits."""
    slots = _decoded(page)
    if not isinstance(slots, list) or not all(isinstance(slot, dict) for slot in slots):
        return None
    running = sum(1 for slot in slots if slot.get("is_processing"))
    return LoadReading(running, max(0, in_flight - len(slots)))


def read_loads(page: bytes) -> LoadReading | None:
    """SGLang's /v1/loads: one entry per scheduler."""
    data = _decoded(page)
    entries = data.get("loads") if isinstance(data, dict) else data
    entries = entries if isinstance(entries, list) else [data]
    running = list(_numbers(entries, "num_running_reqs"))
    waiting = list(_numbers(entries, "num_waiting_reqs"))
    cache = list(_numbers(entries, "token_usage"))
    return LoadReading(sum(running), sum(waiting), max(cache, default=None)) if running else None


def read_header(value: str, in_flight: int) -> LoadReading | None:
    """`JSON {"named_metrics": {...}}`: the format's name stands before the document."""
    data = _decoded(value.partition(" ")[2].encode())
    named = data.get("named_metrics") if isinstance(data, dict) else None
    if not isinstance(named, dict) or not isinstance(named.get("num_requests_waiting"), int | float):
        return None
    waiting, cache = float(named["num_requests_waiting"]), named.get("kv_cache_usage_perc")
    return LoadReading(max(0.0, in_flight - waiting), waiting, cache if isinstance(cache, int | float) else None)


def _numbers(entries: Iterable[Any], name: str) -> Iterable[float]:
    for entry in entries:
        value = entry.get(name) if isinstance(entry, Mapping) else None
        if isinstance(value, int | float):
            yield float(value)


def _decoded(page: bytes) -> Any:
    try:
        return orjson.loads(page)
    except orjson.JSONDecodeError:
        return None
