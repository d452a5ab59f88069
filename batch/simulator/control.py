"""Steering a running simulator over HTTP, from loopback only: GET and POST /control.

Owns: reading totals, and changing settings. POST takes SimulatorConfig's keys as JSON,
only those to change; "forget": true empties the log.
May not touch: how a setting works.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import orjson

from batch.simulator.config import SimulatorConfig
from batch.simulator.protocol import Head, Reply

if TYPE_CHECKING:
    from batch.simulator.server import Simulator

_FIXED = {"host", "port", "log_path", "keep_log"}


def answer(simulator: Simulator, head: Head, body: bytes, peer: str) -> Reply:
    """403 from elsewhere; 400 with the reason for what cannot be set."""
    if peer not in {"127.0.0.1", "::1"}:
        return _json(403, {"error": "control is for loopback only"})
    if head.path != "/control":
        return _json(404, {"error": "there is /control"})
    if head.method == "POST":
        try:
            _change(simulator, orjson.loads(body))
        except (ValueError, TypeError) as error:
            return _json(400, {"error": str(error)})
    return _json(200, {**simulator.witness.totals(), "personality": simulator.config.personality})


def _change(simulator: Simulator, values: Any) -> None:
    if not isinstance(values, dict):
        raise ValueError("send an object of settings")
    changes = dict(values)
    if changes.pop("forget", False):
        simulator.witness.forget()
    if fixed := sorted(set(changes) & _FIXED):
        raise ValueError(f"{', '.join(fixed)}: cannot change while it runs")
    if not changes:
        return
    read = SimulatorConfig.from_mapping(changes)
    simulator.apply(dataclasses.replace(simulator.config, **{name: getattr(read, name) for name in changes}))


def _json(status: int, value: Any) -> Reply:
    return Reply(status, orjson.dumps(value))
