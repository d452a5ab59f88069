"""`batchmill check`: everything that can be known of an input file before it is sent. Owns its arguments."""

from __future__ import annotations

from typing import Annotated

import typer

from batch.cli import exits, options
from batch.cli.check_report import problem_rows, summary_rows
from batch.cli.console import say_facts, say_json
from batch.completions.rules import CHAT
from batch.domain.options import BatchOptions
from batch.operations.check_input import check_input
from batch.providers.catalog import Catalog
from batch.settings import load_settings, parse_duration

STYLES = {"warning": "yellow", "problem": "red"}


def check(
    file: options.Source,
    endpoint: options.Endpoint = CHAT,
    window: options.Window = None,
    option: options.Option = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many problems to print.")] = 100,
    as_json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Find every problem with its line; say tokens, cost, time, and what will be emulated where."""
    settings = load_settings(config)
    wanted = BatchOptions.parse(options.pairs(option))
    found = check_input(file, Catalog.from_settings(settings), settings, options=wanted, endpoint=endpoint)
    if as_json:
        window_s = parse_duration(window) if window else None
        late = {"lines_beyond_window": found.lines_beyond(window_s)} if window_s else {}
        say_json(found.to_json() | late)
    else:
        say_facts(problem_rows(found, limit=limit), styles={})
        say_facts(summary_rows(found, file, window), styles=STYLES)
    if not found.is_valid:
        raise exits.Leave(exits.BAD_INPUT)
