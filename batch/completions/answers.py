"""How a line ends: an Answer, or a LineFailure.

Owns: these two values. Made by answering.py; the executor turns them into a LineResult.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from batch.domain.outcome import Usage


@dataclass(slots=True)
class Answer:
    """A line's success. `body` is the chat completion (or embedding, response) as JSON. `usage` is what it
    shows, `billed` the sum of all calls. `cost_usd` is the provider's own figure, None if any call lacks
    one. `note` becomes `batchmill` on the output line, beside what the executor knows."""

    body: bytes
    usage: Usage
    billed: Usage
    cost_usd: float | None
    facts: tuple[str, ...]
    note: dict[str, Any]


@dataclass(slots=True)
class LineFailure:
    """A line that this provider answered, but never as asked; `code` is a line error code."""

    code: str
    message: str
    note: dict[str, Any]
    billed: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    facts: tuple[str, ...] = ()
