"""The live bar of `run`, `status -w` and the demo; without a terminal, a plain row now and then.

Owns: the rate and the eta (over the last minute of progress) and how they are drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from batch.cli.console import STDERR, note, on_terminal
from batch.cli.story import paused_providers
from batch.cli.wording import count, duration, rate
from batch.clock import SYSTEM_CLOCK, Clock

PLAIN_EVERY_S = 30.0
RATE_OVER_S = 60.0


class BatchProgress:
    """Feed it explanations; it draws. A context manager."""

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK, live: bool | None = None) -> None:
        self._clock = clock
        self._live = on_terminal() if live is None else live
        self._seen: deque[tuple[float, int]] = deque()
        self._last_row = -PLAIN_EVERY_S
        self._task: Any = None
        self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), _Words(),
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
        words = progress_words(story, self._rate(done))
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

    def _rate(self, done: int) -> float | None:
        """Lines per second over the last minute; None before there is progress to measure."""
        now = self._clock.monotonic()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_OVER_S:
            self._seen.popleft()
        since, first = self._seen[0]
        return (done - first) / (now - since) if done > first and now > since else None


def progress_words(story: Mapping[str, Any], per_second: float | None) -> str:
    """ "33 %  4,102/12,480  15.6/min  3 failed  eta 8 h 57 min"."""
    counts, status = story["counts"], story["status"]
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
    elif per_second and done < total:
        words.append(f"eta {duration((total - done) / per_second)}")
    return "  ".join(words)


def short_id(batch_id: str) -> str:
    """batch_67f0a1: enough to know it by."""
    return batch_id[:12]


class _Words(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("words", "")))
