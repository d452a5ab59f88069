"""Options that several verbs share: their names, help and parsing. A wrong value is a usage error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from batch.completions.rules import ENDPOINTS
from batch.settings import parse_duration


def duration(text: str) -> str:
    """The text itself, once it is known to be a duration."""
    if parse_duration(text) is None:
        raise typer.BadParameter(f'"{text}" is no duration; it looks like 30s, 90m, 24h or 7d')
    return text


def share(text: str) -> float:
    """ "1%" or "0.01" → 0.01."""
    try:
        part = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        part = -1.0
    if not 0 <= part <= 1:
        raise typer.BadParameter(f'"{text}" is no share; it looks like 1% or 0.01')
    return part


def endpoint(text: str) -> str:
    if text not in ENDPOINTS:
        raise typer.BadParameter(f"{text} is not served; there are {', '.join(ENDPOINTS)}")
    return text


def pairs(given: list[str] | None) -> dict[str, Any]:
    """["priority=low", "schema_retries=3"] → {"priority": "low", "schema_retries": 3}; values are JSON or text."""
    chosen: dict[str, Any] = {}
    for pair in given or []:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f'"{pair}": write KEY=VALUE, for instance priority=low')
        try:
            chosen[name] = orjson.loads(text)
        except orjson.JSONDecodeError:
            chosen[name] = text
    return chosen


DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where state lives (default ./.batchmill or BATCHMILL_DATA_DIR).", file_okay=False),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration file (default BATCHMILL_CONFIG or ./batchmill.toml)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Server = Annotated[
    str | None,
    typer.Option("--server", help="The server's address (default BATCHMILL_SERVER or http://127.0.0.1:8484)."),
]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="Key of that server (better: BATCHMILL_API_KEY).")]
BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch, as submit and status name it.")]
Source = Annotated[
    Path, typer.Argument(metavar="IN", exists=True, dir_okay=False, readable=True, help="JSONL of requests.")
]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Write here (default: stdout).", dir_okay=False)]
Endpoint = Annotated[str, typer.Option("--endpoint", parser=endpoint, metavar="PATH", help="What each line asks.")]
Window = Annotated[
    str | None,
    typer.Option("--window", parser=duration, metavar="DURATION", help="Completion window: 90m, 24h, 7d."),
]
Option = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="An option of the batch, e.g. priority=low; repeat it."),
]
LocalModel = Annotated[
    bool, typer.Option("--local-model", help="Also serve the bundled small model, as the provider `local`.")
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, max=256, help="Worker processes (default 1).")]
