"""The `batchmill` command: its verbs, and the one wall where errors become messages and exit codes.

Owns: which verbs there are. A user's mistake never shows a traceback; a bug of ours does.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

import typer
from typer.exceptions import Abort, TyperException

from batch.cli import admin, batches, check, exits, prepare, providers, run, simulate, up
from batch.cli.console import complain, note
from batch.domain.errors import BatchmillError
from batch.settings import ConfigError

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


for module in (run, check, prepare, batches, providers, up, simulate):
    module.register(app)
app.add_typer(admin.app, name="admin")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit the process."""
    sys.exit(run_command(arguments))


def run_command(arguments: list[str] | None = None) -> int:
    """The exit code of one command line."""
    try:
        code = app(args=arguments, prog_name="batchmill", standalone_mode=False)
        return code if isinstance(code, int) else exits.OK
    except exits.Leave as leave:
        return leave.code
    except (ConfigError, BatchmillError) as error:
        complain(str(error))
        return exits.BAD_INPUT
    except TyperException as error:
        complain(_explain_usage(error))
        return exits.BAD_INPUT
    except (Abort, KeyboardInterrupt):
        note("stopped")
        return exits.INTERRUPTED
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
