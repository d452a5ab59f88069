"""The lines that a lane holds and has not sent yet, and whose turn it is.

Owns: LineQueue — a queue per batch, picked by the same shares as a claim (domain.shares), a few lines at
a time so that the rule costs little. May not touch: calls, leases, the database.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from batch.domain.shares import Contender, Shares
from batch.storage.claims import OpenLine
from workers.leases import HeldSlice

TURN_SHARE = 32  # a turn of one batch is this part of the lines in flight: longer ones would blur the shares

Waiting = tuple[HeldSlice, OpenLine]


class LineQueue:
    """add() in sending order; next() by fair shares of the lines in flight."""

    def __init__(self) -> None:
        self.unsent = 0
        self._batches: dict[int, deque[Waiting]] = {}
        self._contenders: dict[int, Contender] = {}
        self._turn: deque[Waiting] | None = None
        self._turn_left = 0

    def add(self, held: HeldSlice, items: Iterable[OpenLine]) -> None:
        claim = held.claim
        queue = self._batches.get(claim.batch_id)
        if queue is None:
            queue = self._batches[claim.batch_id] = deque()
        before = len(queue)
        queue.extend((held, item) for item in items)
        self.unsent += len(queue) - before
        if claim.batch_id not in self._contenders:
            self._contenders[claim.batch_id] = Contender(
                claim.batch_id, claim.project_id, claim.priority, claim.expires_at, 1, 0
            )

    def next(self) -> Waiting | None:
        """The next line, or None."""
        if self.unsent == 0:
            return None
        if len(self._batches) == 1:
            queue = next(iter(self._batches.values()))
        else:
            queue = self._whose_turn()
        self.unsent -= 1
        held, item = queue.popleft()
        self._contenders[held.claim.batch_id].leased += 1
        if not queue:
            del self._batches[held.claim.batch_id]
            self._turn = None
        return held, item

    def note_end(self, batch_id: int) -> None:
        """A line that next() gave out has ended or left."""
        contender = self._contenders.get(batch_id)
        if contender is not None:
            contender.leased -= 1
            if contender.leased <= 0 and batch_id not in self._batches:
                del self._contenders[batch_id]

    def take_tail(self, held: HeldSlice, count: int) -> list[OpenLine]:
        """The last `count` unsent lines of a slice, removed."""
        queue = self._batches.get(held.claim.batch_id)
        if queue is None or count <= 0:
            return []
        taken = [item for owner, item in queue if owner is held][-count:]
        gone = {item.line for item in taken}
        kept = deque((owner, item) for owner, item in queue if owner is not held or item.line not in gone)
        self.unsent -= len(taken)
        self._turn = None
        if kept:
            self._batches[held.claim.batch_id] = kept
        else:
            del self._batches[held.claim.batch_id]
        return taken

    def _whose_turn(self) -> deque[Waiting]:
        if self._turn is None or self._turn_left <= 0:
            chosen = Shares(self._contenders[batch_id] for batch_id in self._batches).pick()
            assert chosen is not None
            in_flight = sum(contender.leased for contender in self._contenders.values())
            self._turn, self._turn_left = self._batches[chosen.batch_id], max(1, in_flight // TURN_SHARE)
        self._turn_left -= 1
        return self._turn
