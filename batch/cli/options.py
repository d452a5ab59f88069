"""Options that several verbs share, and the settings that they make. Owns their names and help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from batch.settings import Settings, load_settings, parse_duration

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Where state lives (default ./.batchmill or BATCHMILL_DATA_DIR).",
        show_default=False,
        file_okay=False,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", help="Configuration file (default BATCHMILL_CONFIG or ./batchmill.toml).", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Server = Annotated[
    str | None,
    typer.Option(
        "--server", help="The server's address (default BATCHMILL_SERVER or http://127.0.0.1:8484).", show_default=False
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", help="Key of that server (better: BATCHMILL_API_KEY).", show_default=False),
]
BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch, as submit and status name it.")]


def settings_of(config: Path | None = None, **overrides: Any) -> Settings:
    """Settings with the given options on top; options that were not given are None."""
    return load_settings(config, **overrides)


def client_settings(server: str | None, api_key: str | None) -> Settings:
    return load_settings(None, server=server, api_key=api_key)


def seconds_of(text: str, option: str) -> float:
    """A duration option in seconds; a wrong one is a usage error."""
    seconds = parse_duration(text)
    if seconds is None:
        raise typer.BadParameter(f'"{text}" is no duration; it looks like 30s, 90m, 24h or 7d', param_hint=option)
    return seconds


def share_of(text: str, option: str) -> float:
    """ "1%" or "0.01" → 0.01."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise typer.BadParameter(f'"{text}" is no share; it looks like 1% or 0.01', param_hint=option)
    return share
