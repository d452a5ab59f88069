"""Who is next: fair shares among priority classes, then projects, then batches.

Owns: the one rule by which a pump picks the batch to claim from, and the next line among those it holds.
Shares, never strict order: a low class always moves.
May not touch: storage; the counts come from outside and may be stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

CLASS_WEIGHTS = (8, 4, 1)  # high, normal, low


@dataclass(slots=True)
class Contender:
    """One batch in one lane. `ready` and `leased` count lines; `deadline` is in milliseconds, None: none."""

    batch_id: int
    project_id: int
    priority: int
    deadline: int | None
    ready: int
    leased: int


class Shares:
    """Counts by class, project and batch; `pick` names the next batch, `take` moves lines to leased."""

    def __init__(self, contenders: Iterable[Contender]) -> None:
        self._batches: dict[int, dict[int, list[Contender]]] = {}
        self._class_leased: dict[int, int] = {}
        self._project_leased: dict[tuple[int, int], int] = {}
        for contender in contenders:
            self._batches.setdefault(contender.priority, {}).setdefault(contender.project_id, []).append(contender)
            self._add(contender, contender.leased)

    def pick(self, allowed: Callable[[Contender], bool] = lambda _: True) -> Contender | None:
        """The allowed batch with ready lines that has the smallest share at each level; None when there is none."""
        best: tuple[tuple[float, ...], Contender] | None = None
        for priority, projects in self._batches.items():
            class_share = self._class_leased[priority] / CLASS_WEIGHTS[priority]
            for project_id, batches in projects.items():
                project_share = self._project_leased[priority, project_id]
                if best is not None and (class_share, priority, project_share) > best[0][:3]:
                    continue
                for batch in batches:
                    if batch.ready > 0 and allowed(batch):
                        deadline = float("inf") if batch.deadline is None else batch.deadline
                        rank = (class_share, priority, project_share, batch.leased, deadline, batch.batch_id)
                        if best is None or rank < best[0]:
                            best = (rank, batch)
        return best[1] if best else None

    def take(self, contender: Contender, lines: int) -> None:
        """`lines` of this batch are leased now."""
        contender.ready = max(0, contender.ready - lines)
        contender.leased += lines
        self._add(contender, lines)

    def exhaust(self, contender: Contender) -> None:
        """This batch has nothing ready after all."""
        contender.ready = 0

    def _add(self, contender: Contender, lines: int) -> None:
        key = (contender.priority, contender.project_id)
        self._class_leased[contender.priority] = self._class_leased.get(contender.priority, 0) + lines
        self._project_leased[key] = self._project_leased.get(key, 0) + lines
