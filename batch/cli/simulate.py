"""`batchmill simulate`: hands its flags to the simulator's own program. Owns nothing else."""

from __future__ import annotations

import typer

from batch.cli import exits
from batch.simulator.__main__ import main


def register(app: typer.Typer) -> None:
    app.command(
        "simulate",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
        epilog="Example: batchmill simulate --port 8485 --as xai --enforce-documented --fault status:0.02,status=500",
    )(simulate)


def simulate(context: typer.Context) -> None:
    """Run a provider to rehearse against: limits, latency and faults as told (--help lists them)."""
    raise exits.Leave(main(context.args))
