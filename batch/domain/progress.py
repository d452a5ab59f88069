"""What one line has behind it: the state that outlives a give-back, kept in `line_progress`.

Owns: LineState (attempts by cause, waits, refusals) and Progress (that state beside the kept choices of
completions.answering), to and from JSON. Reading is lenient: a damaged row starts anew rather than
stopping a line. May not touch: decisions (domain.retry), storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class LineState:
    """Counts of one line. `attempts` are spent from the line's budget, `content` from the content budget.

    `causes` counts every failure by kind; `here` the same since the line came to its present provider.
    `waits` counts waits in a row that spent nothing (rate limits, overload): only the back-off reads it.
    `patience` counts refusals by overload while other lines of the lane succeeded. `refused_at` is when
    the provider first refused this line with 403 or 404 (Unix seconds).
    """

    attempts: int = 0
    content: int = 0
    waits: int = 0
    patience: int = 0
    refused_at: float | None = None
    failed_at: float | None = None
    causes: Mapping[str, int] = field(default_factory=dict)
    here: Mapping[str, int] = field(default_factory=dict)
    last_error: str | None = None

    @property
    def calls_failed(self) -> int:
        return sum(self.causes.values())

    def after_hop(self) -> LineState:
        """The state with which the next provider of the route starts: what was spent stays spent."""
        return replace(self, here={}, waits=0, refused_at=None, patience=0)

    def after_success(self) -> LineState:
        """An answer came (perhaps one of several choices): waits in a row are over."""
        return replace(self, waits=0, patience=0, refused_at=None)


@dataclass(frozen=True, slots=True)
class Progress:
    """One row of `line_progress`: the line's state and the snapshot of its answering (opaque here)."""

    state: LineState = LineState()
    answering: Mapping[str, Any] | None = None

    @property
    def is_fresh(self) -> bool:
        """True when there is nothing to keep: no row is written."""
        return self.state == LineState() and not self.answering

    def to_json(self) -> dict[str, Any]:
        """Only what differs from a fresh line, so that rows stay small."""
        data: dict[str, Any] = {"state": {name: value for name, value in asdict(self.state).items() if value}}
        if self.answering:
            data["answering"] = dict(self.answering)
        return data

    @classmethod
    def from_json(cls, data: Any) -> Progress:
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError:
            return cls()
