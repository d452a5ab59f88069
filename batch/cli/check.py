"""`batchmill check`: everything that can be known of an input file before it is sent. Owns its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batch.cli import exits, options
from batch.cli.batches import parse_options
from batch.cli.check_report import problem_rows, summary_rows
from batch.cli.console import say_facts, say_json
from batch.completions.rules import CHAT, ENDPOINTS
from batch.domain.errors import InvalidRequest
from batch.domain.options import BatchOptions
from batch.operations.check_input import check_input
from batch.providers.catalog import Catalog

STYLES = {"warning": "yellow", "problem": "red"}


def register(app: typer.Typer) -> None:
    app.command("check", epilog="Example: batchmill check docs.jsonl --window 24h")(check)


def check(
    file: Annotated[
        Path, typer.Argument(metavar="IN", exists=True, dir_okay=False, readable=True, help="JSONL of requests.")
    ],
    endpoint: Annotated[str, typer.Option("--endpoint", help="What each line asks.")] = CHAT,
    window: Annotated[str | None, typer.Option("--window", help="Completion window to hold the time against.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the batch; repeat it.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many problems to print.")] = 100,
    as_json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Find every problem with its line; say tokens, cost, time, and what will be emulated where."""
    settings = options.settings_of(config)
    require_endpoint(endpoint)
    window_s = options.seconds_of(window, "--window") if window else None
    found = check_input(
        file,
        Catalog.from_settings(settings),
        settings,
        options=BatchOptions.parse(parse_options(option or [])),
        endpoint=endpoint,
    )
    if as_json:
        late = {"lines_beyond_window": found.lines_beyond(window_s)} if window_s else {}
        say_json(found.to_json() | late)
    else:
        say_facts(problem_rows(found, limit=limit), styles={})
        say_facts(summary_rows(found, name=file.name, path=str(file), window_s=window_s), styles=STYLES)
    if not found.is_valid:
        raise exits.Leave(exits.BAD_INPUT)


def require_endpoint(endpoint: str) -> None:
    if endpoint not in ENDPOINTS:
        raise InvalidRequest(f"--endpoint {endpoint}: not served; there are {', '.join(ENDPOINTS)}", param="endpoint")
