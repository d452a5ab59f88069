"""What a lane is built from, and whom it talks to.

Owns: the shapes only: LaneParts, Load, and the two protocols that the pump and lane_news fulfil.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from batch.domain.retry import Decision
from batch.providers.adapter import Adapter
from batch.storage.claims import OpenLine
from workers.breaker import Breakers
from workers.concurrency import Window
from workers.engines import Engine
from workers.executor import LaneContext
from workers.leases import HeldSlice
from workers.pacer import LaneView, Pacer
from workers.recorder import Recorder

if TYPE_CHECKING:
    from workers.lane import Lane


class News(Protocol):
    """What a lane has learned (workers/lane_news.py)."""

    def pause(self, lane: Lane, decision: Decision) -> None: ...
    def note_first_success(self, lane: Lane) -> None: ...
    def note_learned(self, lane: Lane, support: dict[str, str]) -> None: ...
    def note_rates(self, lane: Lane, headers: dict[str, str]) -> None: ...
    def note_estimates(self, lane: Lane, patch: dict[str, Any]) -> None: ...


class Hooks(Protocol):
    """What a lane asks of its pump."""

    def give_back_soon(self, held: HeldSlice) -> None: ...
    def note_pause(self, lane: Lane, until: float) -> None: ...
    def ask_for_lines(self, lane: Lane) -> None: ...


@dataclass(slots=True)
class Load:
    """Calls in flight in this process, against settings.max_in_flight."""

    limit: int
    in_flight: int = 0


@dataclass(slots=True)
class LaneParts:
    """What a lane is built from; the pump makes them once per process or per lane."""

    context: LaneContext
    view: LaneView
    window: Window
    adapter: Adapter
    pacer: Pacer
    breakers: Breakers
    recorder: Recorder
    load: Load
    hooks: Hooks
    news: News
    read_body: Callable[[HeldSlice, OpenLine], bytes]
    engine: Engine | None = None  # the replicas of a self-hosted one
