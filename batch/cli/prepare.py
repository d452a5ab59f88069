"""`batchmill prepare`: a table in, batch input out. Owns its arguments; the work is an operation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from batch.cli import options
from batch.cli.console import note
from batch.cli.wording import plural
from batch.domain.errors import InvalidRequest
from batch.files.local_file import write_atomically
from batch.files.tabular import read_rows
from batch.operations.prepare_requests import parse_template, prepare_requests


def prepare(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", exists=True, dir_okay=False, help="CSV, TSV, JSONL or Parquet.")
    ],
    template: Annotated[
        str,
        typer.Option(
            "--template", help="Prompt with {column} placeholders, or a file with one, or with a whole body as JSON."
        ),
    ],
    out: options.Output = None,
    model: Annotated[str | None, typer.Option("--model", help="Model of every request.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message, with placeholders.")] = None,
    schema: Annotated[
        Path | None,
        typer.Option("--schema", help="JSON Schema that each answer must satisfy.", exists=True, dir_okay=False),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A further body key, e.g. n=3; repeat it.")
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option("--id", metavar="COLUMN", help="Column to use as custom_id (default: row-1, row-2, …)."),
    ] = None,
) -> None:
    """Turn rows of a table into requests. `results ID --csv TABLE` joins the answers back."""
    plan = parse_template(
        _text_of(template), model=model, system=system, schema=_schema(schema), extra=options.pairs(settings),
        id_column=id_column,
    )  # fmt: skip
    lines = prepare_requests(read_rows(table), plan)
    if out is None:
        for line in lines:
            sys.stdout.buffer.write(line)
        return
    written = 0

    def counted() -> Any:
        nonlocal written
        for line in lines:
            written += 1
            yield line

    write_atomically(out, counted())
    note(f"{out}  {plural(written, 'request')}; look at it: batchmill check {out}")


def _text_of(template: str) -> str:
    """The argument itself, or the content of the file that it names."""
    if "\n" in template or "{" in template or len(template) > 255:
        return template
    path = Path(template)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    raise InvalidRequest(
        f'--template "{template}": no such file, and no {{column}} in it; every request would be the same'
    )


def _schema(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        schema = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{path}: not valid JSON: {error}") from None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{path}: a JSON Schema is an object")
    return schema
