"""The live bar of `run`, `status -w` and the demo; without a terminal, a plain row now and then.

Owns: how counts, rate and eta are drawn; operations/eta.py measures them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from batch.cli.console import STDERR, note, on_terminal
from batch.cli.story import paused_providers
from batch.cli.wording import count, duration, rate
from batch.clock import SYSTEM_CLOCK, Clock

PLAIN_EVERY_S = 30.0


class BatchProgress:
    """Feed it explanations; it draws. A context manager."""

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK, live: bool | None = None) -> None:
        self._clock = clock
        self._live = on_terminal() if live is None else live
        self._last_row = -PLAIN_EVERY_S
        self._task: Any = None
        self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=max(6, min(24, STDERR.width - 70))), _Words(),
            console=STDERR, disable=not self._live, transient=False, refresh_per_second=4,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, story: Mapping[str, Any]) -> None:
        counts = story["counts"]
        done = counts["completed"] + counts["failed"]
        words = progress_words(story)
        if self._live:
            if self._task is None:
                self._task = self._bar.add_task(short_id(story["id"]), total=None)
            self._bar.update(self._task, completed=done, total=counts["total"] or None, words=words)
            return
        now = self._clock.monotonic()
        if now - self._last_row >= PLAIN_EVERY_S:
            self._last_row = now
            note(f"{short_id(story['id'])}  {words}")

    def say(self, text: str) -> None:
        """A sentence above the bar."""
        if self._live:
            self._bar.console.print(Text(text))
        else:
            note(text)


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


class _Words(ProgressColumn):
    """One row, also where the terminal is narrow."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("words", "")))
