"""The `batchmill` command: its verbs, and the one wall where errors become messages and exit codes.

Owns: which verbs there are. A user's mistake never shows a traceback; a bug of ours does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import version

import typer
from sqlalchemy.exc import SQLAlchemyError
from typer.exceptions import TyperException

from batch.cli import admin, batches, check, exits, prepare, providers, run, up
from batch.cli.console import complain, note
from batch.domain.errors import BatchmillError
from batch.settings import ConfigError
from batch.simulator import __main__ as simulator
from batch.storage.migrate import driver_reason

app = typer.Typer(
    name="batchmill",
    help="A job queue for batch chat completions: JSONL of requests in, JSONL of answers out.",
    epilog="Example: batchmill run docs.jsonl -o out.jsonl        Help on a verb: batchmill run --help",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def batchmill(
    show_version: bool = typer.Option(False, "--version", help="Print the version and leave.", is_eager=True),
) -> None:
    if show_version:
        typer.echo(f"batchmill {version('batchmill')}")
        raise typer.Exit()


VERBS: tuple[tuple[Callable[..., None], str], ...] = (
    (run.run, "run docs.jsonl -o out.jsonl        Only look: --dry-run        Rehearse: --simulate"),
    (check.check, "check docs.jsonl --window 24h"),
    (prepare.prepare, 'prepare docs.csv --template "Summarize: {text}" --model grok-4.3 -o docs.jsonl'),
    (batches.submit, "submit docs.jsonl --window 24h"),
    (batches.status, "status batch_67f0a1… -w        All of them: batchmill status"),
    (batches.results, "results batch_67f0a1… -o out.jsonl        As they come: --follow"),
    (batches.cancel, "cancel batch_67f0a1…"),
    (batches.retry, "retry batch_67f0a1…"),
    (providers.providers, "providers        Now: --live        Ask it: batchmill providers xai check --probe"),
    (up.up, "up --workers 2        With a model and no key: batchmill up --local-model"),
    (up.worker, "worker -Q calls        The same: celery -A workers.app worker"),
)
for verb, example in VERBS:
    app.command(epilog=f"Example: batchmill {example}")(verb)
app.add_typer(admin.app, name="admin")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def simulate(context: typer.Context) -> None:
    """Run a provider to rehearse against: limits, latency and faults as told (--help lists them)."""
    raise exits.Leave(simulator.main(context.args))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit the process."""
    sys.exit(run_command(arguments))


def run_command(arguments: list[str] | None = None) -> int:
    """The exit code of one command line."""
    try:
        code = app(args=arguments, prog_name="batchmill", standalone_mode=False)
        if code == exits.INTERRUPTED:
            note("stopped")
        return code if isinstance(code, int) else exits.OK
    except exits.Leave as leave:
        return leave.code
    except (ConfigError, BatchmillError) as error:
        complain(str(error))
        return exits.BAD_INPUT
    except TyperException as error:
        if error.format_message():  # empty when help was shown because nothing was asked
            complain(_explain_usage(error))
        return exits.BAD_INPUT
    except SQLAlchemyError as error:
        complain(f"database: {driver_reason(error)}")
        return exits.BAD_INPUT
    except BrokenPipeError:
        _close_stdout()
        return exits.OK
    except OSError as error:
        complain(_explain(error))
        return exits.BAD_INPUT


def _explain_usage(error: TyperException) -> str:
    """What is wrong with the command line, and where help stands."""
    command = getattr(getattr(error, "ctx", None), "command_path", "batchmill")
    return f"{error.format_message()}\nhelp: {command} --help"


def _explain(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"


def _close_stdout() -> None:
    """The reader of our output left (`| head`): nothing more to say, also not at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
