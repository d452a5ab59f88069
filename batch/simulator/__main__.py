"""The program: python -m batch.simulator, and what `batchmill simulate` calls.

Owns: flags, printed lines, signals. Prints the address on the first line of standard output.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batch.simulator.config import Fault, Latency, Limit, SimulatorConfig, read_fault
from batch.simulator.headers import HEADER_FAMILIES
from batch.simulator.personalities import load_personalities
from batch.simulator.server import Simulator

_LIMITERS = {
    "bucket60": ("token_bucket", 60.0),
    "minute": ("fixed_window", 60.0),
    "bucket1": ("token_bucket", 1.0),
    "second": ("fixed_window", 1.0),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; 2 for wrong flags or settings."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        config = config_from(given)
        simulator = Simulator(config)
    except (ValueError, TypeError, OSError) as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: simulator.stop())
    try:
        simulator.serve(_announce)
    except OSError as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    print(json.dumps(simulator.witness.totals()), file=sys.stderr)
    return 0


def config_from(given: argparse.Namespace) -> SimulatorConfig:
    """The file's settings with the flags over them. Raises ValueError with the mend."""
    config = SimulatorConfig.from_file(given.config) if given.config else SimulatorConfig()
    changes: dict[str, Any] = {
        name: getattr(given, name)
        for name in (f.name for f in dataclasses.fields(SimulatorConfig))
        if getattr(given, name, None) is not None
    }
    if given.latency is not None:
        changes["latency"] = Latency.parse(given.latency)
    for name in ("models", "valid_keys", "invalid_keys"):
        if name in changes:
            changes[name] = tuple(changes[name])
    if given.feature:
        changes["features"] = tuple(_pair(text) for text in given.feature)
    if given.fault:
        changes["faults"] = tuple(_fault(text) for text in given.fault)
    limits = _limits(given)
    if limits:
        changes["limits"] = limits
    if given.no_log:
        changes["keep_log"] = False
    return config.replace(**changes)


def _announce(simulator: Simulator) -> None:
    print(f"simulating {simulator.config.personality} at {simulator.base_url}", flush=True)


def _limits(given: argparse.Namespace) -> tuple[Limit, ...]:
    kind, over_s = _LIMITERS[given.limiter]
    rows: list[Limit] = []
    for what, amount, per_s in (
        ("requests", given.rps, 1.0), ("requests", given.rpm, 60.0), ("requests", given.rph, 3600.0),
        ("tokens", given.tpm, 60.0),
    ):  # fmt: skip
        if amount is not None:
            rows.append(Limit(what, amount, per_s, kind, min(over_s, per_s), given.charge))  # type: ignore[arg-type]
    if given.concurrency is not None:
        rows.append(Limit("concurrency", given.concurrency))
    return tuple(rows)


def _pair(text: str) -> tuple[str, Any]:
    name, _, behaviour = text.partition("=")
    if behaviour not in {"native", "ignored", "rejected"}:
        raise ValueError(f"--feature {text}: write NAME=native, NAME=ignored or NAME=rejected")
    return name, behaviour


def _fault(text: str) -> Fault:
    """KIND[:RATE][,key=value…] or a JSON object."""
    if text.startswith("{"):
        return read_fault(json.loads(text))
    first, *rest = text.split(",")
    kind, _, rate = first.partition(":")
    values: dict[str, Any] = {"kind": kind} | ({"rate": float(rate)} if rate else {})
    for part in rest:
        name, _, value = part.partition("=")
        values[name] = json.loads(value) if value[:1] in set("0123456789[-tf") else value
    return read_fault(values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="batchmill simulate",
        description="A provider to rehearse against: OpenAI-compatible, with limits, latency and faults as told.",
        epilog="example: batchmill simulate --port 8485 --as xai --rps 30 --fault status:0.02,status=500",
    )
    add = parser.add_argument
    add("--config", type=Path, help="settings as .json or .toml (SimulatorConfig's keys); flags win")
    add("--host", help="address to listen on (127.0.0.1)")
    add("--port", type=int, help="port; 0 takes a free one")
    add("--as", dest="personality", choices=sorted(load_personalities()), help="which provider to play")
    add("--model", dest="models", action="append", help="a model to serve besides the provider's own")
    add("--latency", help="seconds, uniform:a,b, exponential:mean, lognormal:median,p99")
    add("--tokens-per-s", type=float, help="speed of generating, on top of the latency")
    add("--answer-tokens", type=int, help="length of answers (40)")
    add("--rps", type=float, help="requests a second")
    add("--rpm", type=float, help="requests a minute")
    add("--rph", type=float, help="requests an hour")
    add("--tpm", type=float, help="tokens a minute")
    add("--concurrency", type=int, help="requests at once, else 429")
    add("--limiter", choices=sorted(_LIMITERS), default="bucket60", help="how rates are enforced (bucket60)")
    add("--charge", choices=["reserve_max", "reserve_refund", "actual", "input_only"], default="reserve_max",
        help="what a request costs in tokens")  # fmt: skip
    add("--headers", choices=sorted(HEADER_FAMILIES), help="family of rate-limit headers")
    add("--feature", action="append", metavar="NAME=BEHAVIOUR", help="n=ignored, seed=rejected, json_schema=native …")
    add("--fault", action="append", metavar="KIND[:RATE][,key=value]", help="repeatable; the first that applies wins")
    add("--valid-key", dest="valid_keys", action="append", help="accept only these keys")
    add("--invalid-key", dest="invalid_keys", action="append", help="refuse these keys")
    add("--slots", type=int, help="requests that run at once; others queue, as in an engine")
    add("--queue-max", type=int, help="requests that may queue")
    add("--unseeded", choices=["same", "fresh"], help="whether answers without a seed repeat")
    add("--seed", type=int, help="of faults and latencies")
    add("--log", dest="log_path", type=Path, help="JSONL of every request (no prompts)")
    add("--log-bodies", action="store_true", default=None, help="put request bodies in the log")
    add("--no-log", action="store_true", help="keep no requests in memory")
    return parser


if __name__ == "__main__":
    sys.exit(main())
