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

from batch.simulator.config import SimulatorConfig
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
    given = _parser().parse_args(arguments)
    try:
        simulator = Simulator(config_from(given))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: simulator.stop())
        simulator.serve(_announce)
    except (ValueError, TypeError, OSError) as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    print(json.dumps(simulator.witness.totals()), file=sys.stderr)
    return 0


def config_from(given: argparse.Namespace) -> SimulatorConfig:
    """The file's settings with the flags over them. Raises ValueError with the mend."""
    config = SimulatorConfig.from_file(given.config) if given.config else SimulatorConfig()
    names = [field.name for field in dataclasses.fields(SimulatorConfig)]
    told = {name: value for name in names if (value := getattr(given, name, None)) is not None}
    limits = _limits(given)
    return config.updated(told | ({"limits": limits} if limits else {}))


def _announce(simulator: Simulator) -> None:
    print(f"simulating {simulator.config.personality} at {simulator.base_url}", flush=True)


def _limits(given: argparse.Namespace) -> list[dict[str, Any]]:
    kind, over_s = _LIMITERS[given.limiter]
    rates = [("requests", given.rps, 1.0), ("requests", given.rpm, 60.0), ("requests", given.rph, 3600.0),
             ("tokens", given.tpm, 60.0)]  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"what": what, "amount": amount, "per_s": per_s, "kind": kind, "over_s": min(over_s, per_s),
         "charge": given.charge}
        for what, amount, per_s in rates if amount is not None
    ]  # fmt: skip
    return rows + ([{"what": "concurrency", "amount": given.concurrency}] if given.concurrency is not None else [])


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
    add("--feature", dest="features", action="append", metavar="NAME=BEHAVIOUR",
        help="n=ignored, seed=rejected, json_schema=native …")  # fmt: skip
    add("--fault", dest="faults", action="append", metavar="KIND[:RATE][,key=value]",
        help="repeatable; the first that applies wins")  # fmt: skip
    add("--valid-key", dest="valid_keys", action="append", help="accept only these keys")
    add("--invalid-key", dest="invalid_keys", action="append", help="refuse these keys")
    add("--slots", type=int, help="requests that run at once; others queue, as in an engine")
    add("--queue-max", type=int, help="requests that may queue")
    add("--unseeded", choices=["same", "fresh"], help="whether answers without a seed repeat")
    add("--seed", type=int, help="of faults and latencies")
    add("--log", dest="log_path", type=Path, help="JSONL of every request (no prompts)")
    add("--log-bodies", action="store_true", default=None, help="put request bodies in the log")
    add("--no-log", dest="keep_log", action="store_false", default=None, help="keep no requests in memory")
    return parser


if __name__ == "__main__":
    sys.exit(main())
