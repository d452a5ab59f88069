"""The verbs that speak with a server: submit, status, results, cancel, retry.

Owns: their arguments and output. Each is a few calls of client.py; what a batch's facts mean in words
stands in story.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from batch.cli import options
from batch.cli.client import Server
from batch.cli.console import note, say, say_json, say_rows
from batch.cli.progress import BatchProgress
from batch.cli.story import tell
from batch.cli.wording import count, date_time, size
from batch.clock import SYSTEM_CLOCK
from batch.completions.rules import CHAT
from batch.domain.errors import InvalidRequest
from batch.domain.states import is_terminal
from batch.files.jsonl import iter_lines
from batch.files.local_file import write_atomically
from batch.operations.join_csv import join_csv

WATCH_EVERY_S = 1.0


def submit(
    file: options.Source,
    endpoint: options.Endpoint = CHAT,
    window: options.Window = "24h",
    option: options.Option = None,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Stay and show progress.")] = False,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Upload a file and start a batch on a server."""
    with Server(server, api_key) as api:
        stored = api.upload(file)
        body = {"input_file_id": stored["id"], "endpoint": endpoint, "completion_window": window}
        chosen = options.pairs(option)
        batch = api.create_batch(body | ({"options": chosen} if chosen else {}))
        if not as_json:
            say(f"{file.name}   {batch['id']}   {batch['status']}   ({size(stored['bytes'])})")
        if watch:
            _show(_watch(api, batch["id"], quiet=as_json), as_json)
        elif as_json:
            say_json(batch)
        else:
            note(f"watch it: batchmill status {batch['id']} -w")


def status(
    batch_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="One batch; without it, the newest ones.")
    ] = None,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Stay and show progress until it ends.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many to list.")] = 20,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Say how a batch fares and why, or list the newest."""
    with Server(server, api_key) as api:
        if batch_id is None:
            _list(api, limit, as_json)
        else:
            _show(_watch(api, batch_id, quiet=as_json) if watch else api.explanation(batch_id), as_json)


def results(
    batch_id: options.BatchId,
    out: options.Output = None,
    errors: Annotated[bool, typer.Option("--errors", help="The error file instead of the answers.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Print lines as they come, in order of completion.")] = False,
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            metavar="TABLE",
            help="Join answers and errors back to this table of `prepare`, as CSV.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id", metavar="COLUMN", help="With --csv: the column that `prepare --id` named.")
    ] = None,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Fetch answers: of a finished batch (with those of its retries), or live with --follow."""
    with Server(server, api_key) as api:
        if csv is not None:
            _write(join_csv(csv, _every_line(api, batch_id), id_column=id_column), out)
        elif follow:
            _write((line + b"\n" for line in _follow(api, batch_id)), out)
        else:
            _write(_finished(api, batch_id, errors), out)


def cancel(
    batch_id: options.BatchId,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Stop a batch. Calls in flight land; what is done is kept."""
    with Server(server, api_key) as api:
        batch = api.act(batch_id, "cancel")
        say_json(batch) if as_json else say(f"{batch['id']}   {batch['status']}")


def retry(
    batch_id: options.BatchId,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Run the lines without an answer again, as a new batch linked to this one."""
    with Server(server, api_key) as api:
        batch = api.act(batch_id, "retry")
        if as_json:
            say_json(batch)
        else:
            say(f"{batch['id']}   {batch['status']}   retry of {batch_id}")
            note(f"the answers of both together: batchmill results {batch_id}")


def _list(api: Server, limit: int, as_json: bool) -> None:
    found = api.batches(limit)
    if as_json:
        say_json(found)
        return
    if not found:
        note("no batches yet; start one: batchmill submit FILE.jsonl")
    for batch in found:
        counts = batch["request_counts"]
        state = batch["status"] + (", PAUSED" if batch.get("paused") else "")
        done = counts["completed"] + counts["failed"]
        failed = f", {count(counts['failed'])} failed" if counts["failed"] else ""
        lines = f"{count(done)}/{count(counts['total'])}{failed}"
        say(f"{batch['id']}   {date_time(batch['created_at'])}   {state:<20}   {lines}")


def _show(story: dict[str, Any], as_json: bool) -> None:
    say_json(story) if as_json else say_rows(tell(story))


def _watch(api: Server, batch_id: str, *, quiet: bool) -> dict[str, Any]:
    """Progress until the batch ends; the last explanation."""
    story = api.explanation(batch_id)
    with nullcontext() if quiet else BatchProgress() as bar:
        while True:
            if bar is not None:
                bar.show(story)
            if is_terminal(story["status"]):
                return story
            SYSTEM_CLOCK.sleep(WATCH_EVERY_S)
            story = api.explanation(batch_id)


def _finished(api: Server, batch_id: str, errors: bool) -> Iterator[bytes]:
    batch = api.batch(batch_id)
    if not is_terminal(batch["status"]):
        raise InvalidRequest(
            f"{batch_id} is {batch['status']}: its files are not written yet\n"
            f"what is there so far: batchmill results {batch_id} --follow"
        )
    return api.family_lines(batch_id, errors=errors)


def _every_line(api: Server, batch_id: str) -> Iterator[bytes]:
    """Answers, then what has none, as lines."""
    for errors in (False, True):
        for line in iter_lines(_finished(api, batch_id, errors), max_line_bytes=sys.maxsize):
            yield line.data or b""


def _follow(api: Server, batch_id: str) -> Iterator[bytes]:
    cursor = 0
    while True:
        lines, cursor, ended = api.results_after(batch_id, cursor)
        yield from lines
        if ended and not lines:
            return
        if not lines:
            sys.stdout.flush()
            SYSTEM_CLOCK.sleep(WATCH_EVERY_S)


def _write(blocks: Iterator[bytes], out: Path | None) -> None:
    if out is None:
        for block in blocks:
            sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
        return
    written = write_atomically(out, blocks)
    note(f"{out}  {size(written)}")
