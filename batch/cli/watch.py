"""The watch over a running batch in `run`: progress, pauses that need a person, budget, ^C.

Owns: when `run` stops waiting and with which exit code. The batch and what it has are kept in every case.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from batch.cli import exits
from batch.cli.console import note, say_rows
from batch.cli.home import Home
from batch.cli.progress import BatchProgress
from batch.cli.story import tell
from batch.cli.wording import count
from batch.clock import SYSTEM_CLOCK
from batch.domain.states import is_terminal
from batch.operations.explain_batch import explain_batch
from batch.operations.pause_batch import resume_batch
from batch.operations.warn_window import duration

LOOK_EVERY_S = 0.5
TICK_S = 0.1
GRACE_S = 15.0  # a standstill may pass by itself, for instance at the start; a pause is told at once


class _Interrupted(Exception):
    """^C or SIGTERM."""


def watch(home: Home, batch_id: str, *, max_pause_s: float | None, budget_usd: float | None) -> dict[str, Any]:
    """The explanation of the ended batch. Raises Leave when waiting has no more sense.

    `max_pause_s` None waits for ever. `budget_usd` is what this run may spend in all.
    """
    _raise_budget(home, batch_id, budget_usd)
    try:
        with _interruptible(), BatchProgress() as bar:
            return _until_ended(home, batch_id, bar, max_pause_s)
    except _Interrupted:
        _stop(home, batch_id)
        raise exits.Leave(exits.INTERRUPTED) from None


def _until_ended(home: Home, batch_id: str, bar: BatchProgress, max_pause_s: float | None) -> dict[str, Any]:
    waiting_since: float | None = None
    said: str | None = None
    while True:
        story = _explain(home, batch_id)
        bar.show(story)
        if is_terminal(story["status"]):
            return story
        reason = awaited(story)
        if reason is None:
            waiting_since, said = None, None
        else:
            waiting_since = waiting_since if waiting_since is not None else SYSTEM_CLOCK.monotonic()
            waited_s = SYSTEM_CLOCK.monotonic() - waiting_since - (GRACE_S if story["idle"] else 0)
            if waited_s >= 0 and (gist := re.sub(r"\d+", "", reason)) != said:  # not each second anew
                note(reason)
                said = gist
            _leave_if_hopeless(story, waited_s, max_pause_s)
        for _ in range(int(LOOK_EVERY_S / TICK_S)):
            home.tick()
            SYSTEM_CLOCK.sleep(TICK_S)


def awaited(story: Mapping[str, Any]) -> str | None:
    """Why nothing moves until a person does something, as a sentence; None when it goes on by itself."""
    if story["paused"]:
        return f"paused: {story['pause_reason'] or 'by a person'}"
    stopped = [lane for lane in story["lanes"] if lane["paused"] and lane["paused"]["mend"]]
    running = [lane for lane in story["lanes"] if not lane["paused"] and lane["ready"] + lane["leased"]]
    if not stopped or running:
        return str(story["idle"]) if story["idle"] else None
    lane = stopped[0]
    paused = lane["paused"]
    return f"paused on {lane['provider']} / {lane['model']}: {paused['reason'] or paused['code']}\n{paused['mend']}"


def _leave_if_hopeless(story: Mapping[str, Any], waited_s: float, max_pause_s: float | None) -> None:
    if story["paused"] and story["pause_reason"] == "budget":
        say_rows(tell(story))
        note("budget reached; what is done is kept. Continue: the same command with a higher --budget.")
        raise exits.Leave(exits.BUDGET_REACHED)
    if max_pause_s is not None and waited_s > max_pause_s:
        say_rows(tell(story))
        note(f"waited {duration(waited_s)} for a person; what is done is kept. Continue: the same command.")
        raise exits.Leave(exits.WAITS_FOR_PERSON)


def _raise_budget(home: Home, batch_id: str, budget_usd: float | None) -> None:
    """A batch that stood still for its budget goes on when this run allows more."""
    story = _explain(home, batch_id)
    more = budget_usd is not None and budget_usd > (story["budget_usd"] or 0)
    if story["paused"] and story["pause_reason"] == "budget" and more:
        resume_batch(home.world, home.project.id, batch_id, budget_usd=budget_usd)


def _stop(home: Home, batch_id: str) -> None:
    story = _explain(home, batch_id)
    if not home.is_own:
        note(f"left; {batch_id} goes on in the service of this directory. Stop it: batchmill cancel {batch_id}")
        return
    in_flight = sum(lane["in_flight"] for lane in story["lanes"])
    calls = count(in_flight) if in_flight else "calls"  # the workers say how many every few seconds only
    note(f"^C stopping: {calls} in flight may land (^C again drops them) ... ", end="")
    home.stop_workers()
    counts = _explain(home, batch_id)["counts"]
    note(f"done. {count(counts['completed'] + counts['failed'])} kept. Continue: the same command.")


def _explain(home: Home, batch_id: str) -> dict[str, Any]:
    return explain_batch(home.world, home.project.id, batch_id)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise _Interrupted inside the block."""

    def interrupt(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise _Interrupted

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
