"""What the command line prints and where: text for people, JSON for programs.

Owns: the two consoles. Answers go to stdout; progress, warnings and errors to stderr. Lines are never
wrapped or coloured when they do not go to a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text

STDOUT = Console(highlight=False, soft_wrap=True)
STDERR = Console(highlight=False, soft_wrap=True, stderr=True)


def say(text: str = "", *, style: str | None = None) -> None:
    """One line of an answer, on stdout."""
    STDOUT.print(Text(text, style=style or ""))


def note(text: str = "", *, style: str | None = None, end: str = "\n") -> None:
    """Something beside the answer, on stderr."""
    STDERR.print(Text(text, style=style or ""), end=end)


def complain(text: str) -> None:
    """An error: "error" in red, then the message as it is."""
    first, _, rest = text.partition("\n")
    STDERR.print(Text.assemble(("error", "bold red"), "  ", first))
    for row in rest.splitlines():
        STDERR.print(Text("       " + row))


def say_json(value: Any) -> None:
    """The whole answer as one JSON document."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode() + "\n")
    sys.stdout.flush()


def report(as_json: bool, text: str, **result: Any) -> None:
    """What was done: a sentence beside the answer, or the answer itself as JSON."""
    say_json(result) if as_json else note(text)


def facts(rows: Iterable[tuple[str, str]], *, indent: str = "", styles: dict[str, str] | None = None) -> list[Text]:
    """Rows of "label  value", aligned; an empty label continues the row above."""
    rows = list(rows)
    width = max((len(label) for label, _ in rows), default=0)
    lines = []
    for label, value in rows:
        style = (styles or {}).get(label, "bold" if not indent else "")
        lines.append(Text.assemble(indent, (label.ljust(width), style), "  ", value))
        lines[-1].rstrip()
    return lines


def say_facts(
    rows: Iterable[tuple[str, str]], *, indent: str = "", styles: dict[str, str] | None = None, to: Console = STDOUT
) -> None:
    say_rows(facts(rows, indent=indent, styles=styles), to=to)


def say_rows(rows: Iterable[Text], *, to: Console = STDOUT) -> None:
    for row in rows:
        to.print(row)


def on_terminal() -> bool:
    """True when a person watches: bars and live views make sense."""
    return bool(STDERR.is_terminal) and sys.stderr.isatty()
