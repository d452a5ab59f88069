"""The live bar of `run`, `status -w` and the demo; without a terminal, a plain row now and then.

Owns: how counts, rate and eta are drawn; operations/eta.py measures them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from batch.cli.console import STDERR, note, on_terminal
from batch.cli.story import paused_providers
from batch.cli.wording import count, rate
from batch.clock import SYSTEM_CLOCK
from batch.operations.warn_window import duration

PLAIN_EVERY_S = 30.0


class BatchProgress:
    """Feed it explanations; it draws. A context manager."""

    def __init__(self) -> None:
        self._live = on_terminal()
        self._last_row = -PLAIN_EVERY_S
        self._task: Any = None
        one_row = Column(no_wrap=True, overflow="ellipsis")  # also where the terminal is narrow
        self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=max(6, min(24, STDERR.width - 70))),
            TextColumn("{task.fields[words]}", markup=False, table_column=one_row),
            console=STDERR, disable=not self._live, transient=False, refresh_per_second=4,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, story: Mapping[str, Any]) -> None:
        counts = story["counts"]
        done = counts["completed"] + counts["failed"]
        words = progress_words(story)
        if self._live:
            if self._task is None:
                self._task = self._bar.add_task(short_id(story["id"]), total=None, words=words)
            self._bar.update(self._task, completed=done, total=counts["total"] or None, words=words)
            return
        now = SYSTEM_CLOCK.monotonic()
        if now - self._last_row >= PLAIN_EVERY_S:
            self._last_row = now
            note(f"{short_id(story['id'])}  {words}")


def progress_words(story: Mapping[str, Any]) -> str:
    """ "33 %  4,102/12,480  15.6/min  3 failed  eta 8 h 57 min"."""
    counts, status, per_second = story["counts"], story["status"], story["rate_per_s"]
    total, done = counts["total"], counts["completed"] + counts["failed"]
    if status == "validating" and not total:
        return "reading the file"
    words = [f"{100 * done // total if total else 100} %", f"{count(done)}/{count(total)}"]
    if per_second:
        words.append(rate(per_second))
    if counts["failed"]:
        words.append(f"{count(counts['failed'])} failed")
    stopped = paused_providers(story)
    if story["paused"] or stopped:
        words.append("paused" + (f" on {', '.join(stopped)}" if stopped else f": {story['pause_reason']}"))
    elif status in {"finalizing", "cancelling"}:
        words.append("writing files" if status == "finalizing" else "cancelling")
    elif story["eta_s"] and done < total:
        words.append(f"eta {duration(story['eta_s'])}")
    return "  ".join(words)


def short_id(batch_id: str) -> str:
    """batch_67f0a1: enough to know it by."""
    return batch_id[:12]
