"""An engine's slots: so many requests run at once, the others wait in order.

Owns: the running and waiting counts that /metrics shows, and who starts next.
May not touch: how long a request runs; its reply says when it ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Slots:
    """`size` None means no limit; `queue_max` None an endless queue."""

    def __init__(self, size: int | None, queue_max: int | None) -> None:
        self.size = size
        self.queue_max = queue_max
        self.running = 0
        self._waiting: deque[Callable[[], bool]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """True when neither a slot nor a place in the queue is free."""
        if self.size is None or self.running < self.size:
            return False
        return self.queue_max is not None and len(self._waiting) >= self.queue_max

    def enter(self, start: Callable[[], bool]) -> None:
        """Start at once or when a slot is free. `start` says False when its caller is gone; else it leaves once."""
        self._waiting.append(start)
        self._start_waiting()

    def leave(self) -> None:
        """Free a slot and start the next in the queue."""
        self.running -= 1
        self._start_waiting()

    def resize(self, size: int | None, queue_max: int | None) -> None:
        self.size, self.queue_max = size, queue_max
        self._start_waiting()

    def _start_waiting(self) -> None:
        while self._waiting and (self.size is None or self.running < self.size):
            start = self._waiting.popleft()
            self.running += 1
            if not start():
                self.running -= 1
