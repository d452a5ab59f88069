"""The state machines of batches and slices, as data.

Owns: which event moves which state where, under which guard. Enums, database CHECKs, the
diagram in docs/architecture.md and the property tests derive from these rows.
May not touch: storage; a transition is performed by one guarded statement there.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class BatchStatus(StrEnum):
    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class SliceState(StrEnum):
    READY = "ready"
    LEASED = "leased"
    DONE = "done"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Transition(NamedTuple):
    source: str
    event: str
    target: str
    guard: str


BATCH_TRANSITIONS: tuple[Transition, ...] = (
    Transition("validating", "reject", "failed", "the file or a line is invalid; job epoch held"),
    Transition("validating", "start", "in_progress", "every line stored and cut into slices; job epoch held"),
    Transition("validating", "cancel", "cancelling", "not sealed"),
    Transition("in_progress", "cancel", "cancelling", "not sealed"),
    Transition("in_progress", "finish", "finalizing", "completed + failed = total; sealed in the same commit"),
    Transition("in_progress", "expire", "expired", "sealed by expiry, files written; job epoch held"),
    Transition("finalizing", "publish", "completed", "files written and counted; job epoch held"),
    Transition("cancelling", "publish", "cancelled", "sealed by cancel, files written; job epoch held"),
)

SLICE_TRANSITIONS: tuple[Transition, ...] = (
    Transition("ready", "claim", "leased", "not_before passed; batch open, not paused; epoch + 1"),
    Transition("leased", "give_back", "done", "owner and epoch match; its lines stand in new ready slices"),
    Transition("leased", "expire_lease", "ready", "lease_until passed; suspicion + 1"),
    Transition("leased", "expire_lease", "done", "no open line, or its halves stand in new ready slices"),
    Transition("ready", "hop", "done", "lane paused; its lines stand in a new slice of the next lane"),
    Transition("leased", "close", "done", "owner and epoch match; no open line"),
    Transition("ready", "close", "done", "no open line (sweep)"),
    Transition("ready", "cancel", "cancelled", "batch sealed by cancel"),
    Transition("leased", "cancel", "cancelled", "batch sealed by cancel"),
    Transition("ready", "expire", "expired", "batch sealed by expiry"),
    Transition("leased", "expire", "expired", "batch sealed by expiry"),
)

TERMINAL = (BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED)
OPEN = tuple(status for status in BatchStatus if status not in TERMINAL)


def is_terminal(status: str) -> bool:
    return status in TERMINAL
