"""The end of a run: OUT and ERR written whole, the last words, the exit code.

Owns: which files are written from which, and how the result is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch.cli import exits
from batch.cli.console import complain, note, say, say_json, say_rows
from batch.cli.home import Home
from batch.cli.story import tell
from batch.cli.wording import count, plural
from batch.files.local_file import write_atomically
from batch.operations.read_files import get_downloadable
from batch.operations.reuse_answers import KeptAnswers, merge_answers


@dataclass(frozen=True)
class RunResult:
    """`story` is the batch's explanation, None when every answer was kept from before."""

    story: dict[str, Any] | None
    out: Path
    err: Path
    reused: int

    @property
    def failed(self) -> int:
        """Lines without an answer."""
        counts = self.story["counts"] if self.story else {"total": 0, "completed": 0}
        return int(counts["total"] - counts["completed"])

    @property
    def total(self) -> int:
        return self.reused + (int(self.story["counts"]["total"]) if self.story else 0)


def deliver(
    home: Home,
    story: dict[str, Any] | None,
    source: Iterable[bytes],
    out: Path,
    err: Path,
    kept: KeptAnswers | None,
    endpoint: str,
) -> RunResult:
    """Write both files, each whole or not at all. An empty ERR is removed, so that it never tells old news.

    Raises Leave, with its reason told, when one cannot be written.
    """
    result = RunResult(story, out, err, len(kept.places) if kept else 0)
    if story is not None and story["status"] == "failed":
        return result
    answers = _content(home, story, "output_file_id")
    if kept is not None:
        answers = merge_answers(source, kept, answers, endpoint)
    try:
        write_atomically(out, answers)
        if story is not None and story["error_file_id"]:
            write_atomically(err, _content(home, story, "error_file_id"))
        else:
            err.unlink(missing_ok=True)
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}\nthe answers are kept; make room and run the same command again")
        raise exits.Leave(exits.WAITS_FOR_PERSON) from None
    return result


def tell_result(result: RunResult, *, allow_failed: float, as_json: bool) -> int:
    """Print how it ended; the exit code."""
    story = result.story
    code = exit_code(result, allow_failed)
    if as_json:
        say_json({"exit_code": code, "output": str(result.out), "errors": str(result.err) if result.failed else None,
                  "reused": result.reused, "batch": story})  # fmt: skip
        return code
    if story is not None:
        say_rows(tell(story))
        if story["status"] == "failed":
            note("the file was refused; nothing was sent")
            return code
    answered = result.total - result.failed
    say(
        f"answers     {result.out}   {plural(answered, 'line')}"
        + (f", {count(result.reused)} reused" * bool(result.reused))
    )
    if result.failed:
        say(f"errors      {result.err}   {plural(result.failed, 'line')}")
    return code


def exit_code(result: RunResult, allow_failed: float) -> int:
    if result.story is not None and result.story["status"] == "failed":
        return exits.BAD_INPUT
    if result.failed > allow_failed * result.total:
        return exits.LINES_FAILED
    return exits.OK


def _content(home: Home, story: dict[str, Any] | None, name: str) -> Iterator[bytes]:
    if story is None or story[name] is None:
        return iter(())
    return home.world.blobs.read(get_downloadable(home.world, home.project.id, story[name]).blob)
