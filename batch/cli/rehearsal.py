"""Simulated providers for `run --simulate`: one for each provider of the file, with that provider's limits.

Owns: turning known limits into a simulator's settings, and pointing the children at it. Nothing leaves
the machine; no key is needed, and no real one is sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from batch.cli.supervisor import Companion, free_port
from batch.domain.limits import Limits
from batch.operations.provider_forecast import LaneForecast
from batch.providers.catalog import Catalog
from batch.providers.presets import load_preset, preset_names
from batch.settings import Settings, process_environment
from batch.simulator.personalities import load_personalities

_PERIODS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}


def companions(lanes: Iterable[LaneForecast], catalog: Catalog, directory: Path) -> tuple[Companion, ...]:
    """A simulator per provider; its settings are written to `directory`."""
    limits: dict[str, Limits] = {}
    for lane in lanes:
        limits.setdefault(lane.provider, lane.limits)
    return tuple(_companion(name, known, catalog, directory) for name, known in limits.items())


def pretended_catalog(settings: Settings) -> Catalog:
    """The catalog of somebody who has a key for every provider. It asks none of them."""
    variables = [load_preset(name).auth.env for name in preset_names()]
    environ = dict.fromkeys(filter(None, variables), "simulated") | process_environment()
    catalog = Catalog.from_settings(settings, environ)
    catalog.ask_again_at = math.inf
    return catalog


def simulator_settings(provider: str, limits: Limits) -> dict[str, Any]:
    """What SimulatorConfig.from_file reads: the provider's manners where known, and exactly these limits."""
    rows = [
        {"what": what, "amount": value, "per_s": _PERIODS[unit], "charge": limits.charge, "scope": limits.scope}
        for name, value in limits.to_json().items()
        for what, per, unit in [name.partition("_per_")]
        if per
    ]
    if limits.hard_second:
        for row in rows:
            if row["what"] == "requests" and row["per_s"] <= 60:
                row |= {"kind": "fixed_window", "over_s": 1.0}
    if limits.concurrency is not None:
        rows.append({"what": "concurrency", "amount": limits.concurrency})
    personality = provider if provider in load_personalities() else "openai"
    return {"personality": personality, "latency": "lognormal:0.6,3", "limits": rows, "keep_log": False}


def _companion(name: str, limits: Limits, catalog: Catalog, directory: Path) -> Companion:
    provider, port = catalog.providers[name], free_port()
    url = f"http://127.0.0.1:{port}/v1"
    settings = directory / f"simulated-{name}.json"
    settings.write_bytes(orjson.dumps(simulator_settings(provider.preset.name, limits)))
    address: dict[str, Any] = {"base_urls": [url]} if provider.config.base_urls else {"base_url": url}
    if provider.config.launch is not None:
        address["launch"] = None  # the engine is simulated too
    kind, _, variable = provider.key_id.partition(":")
    if kind == "file":
        variable = address["api_key_env"] = "SIMULATED_API_KEY"
        address["api_key_file"] = None
    module = ["batch.simulator", "--config", str(settings), "--port", str(port)]
    env = {variable: "simulated"} if kind != "none" else {}
    return Companion(f"simulated-{name}", module, f"http://127.0.0.1:{port}/health", {name: address}, env)
