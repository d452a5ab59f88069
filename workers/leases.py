"""The slices that this process holds, and how far it may trust its leases.

Owns: HeldSlice and Leases — what is open in each slice, renewal at a third of the lease, trust by the
monotonic clock counted from before the renewing statement. Steps: claim to record.
May not touch: calls. The statements are storage.leases'; what a lost lease means for lines is the pump's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from batch.clock import Clock
from batch.settings import LEASE_S, RENEW_EVERY_S
from batch.storage.claims import SliceClaim
from batch.storage.engine import Database
from batch.storage.leases import Release, renew_if_held

TRUST = 2 / 3  # of the lease, after which nothing new is sent without a renewal


@dataclass(slots=True, eq=False)
class HeldSlice:
    """One claim. Its lines are `open`, or in the hands of the recorder (`recording`), or `released`: to be
    written back.

    `stopped` says why nothing new may be sent of it ("cancelled", "paused", "sealed", "lost", "draining").
    `is_returning`: a write-back is under way; `is_closing`: the recorder was asked to close it.
    """

    claim: SliceClaim
    leased_at: float  # monotonic, before the claiming statement
    open: set[int]
    reserved_usd: float = 0.0  # of each line
    recording: set[int] = field(default_factory=set)
    released: list[Release] = field(default_factory=list)
    stopped: str | None = None
    is_returning: bool = False
    is_closing: bool = False
    ends_at: float | None = field(init=False)  # monotonic: the batch's deadline

    def __post_init__(self) -> None:
        self.ends_at = None if self.claim.left_s is None else self.leased_at + self.claim.left_s

    @property
    def is_finished(self) -> bool:
        """True when nothing is left to do here but to record what the recorder has."""
        return not self.open and not self.released and not self.is_returning

    def may_send(self, now: float) -> bool:
        return self.stopped is None and now < self.leased_at + TRUST * LEASE_S


class Leases:
    """Held slices by id. Changed by the event loop only; renew() runs in a thread on a snapshot."""

    def __init__(self, db: Database, owner: str, clock: Clock) -> None:
        self._db = db
        self._owner = owner
        self._clock = clock
        self._held: dict[int, HeldSlice] = {}

    def __iter__(self) -> Iterator[HeldSlice]:
        return iter(list(self._held.values()))

    def __len__(self) -> int:
        return len(self._held)

    def get(self, slice_id: int) -> HeldSlice | None:
        return self._held.get(slice_id)

    def add(self, held: HeldSlice) -> None:
        self._held[held.claim.slice_id] = held

    def remove(self, held: HeldSlice) -> None:
        if self._held.get(held.claim.slice_id) is held:
            del self._held[held.claim.slice_id]

    def of_lane(self, lane_id: int) -> list[HeldSlice]:
        return [held for held in self._held.values() if held.claim.lane_id == lane_id]

    def batch_ids(self, lane_id: int | None = None) -> set[int]:
        return {h.claim.batch_id for h in self._held.values() if lane_id is None or h.claim.lane_id == lane_id}

    @property
    def has_solo(self) -> bool:
        return any(held.claim.solo for held in self._held.values())

    def due(self) -> list[HeldSlice]:
        """Slices whose renewal is due, with a margin so that neighbours travel together."""
        now = self._clock.monotonic()
        return [held for held in self._held.values() if now >= held.leased_at + 0.9 * RENEW_EVERY_S]

    def renew(self, due: Iterable[HeldSlice]) -> tuple[float, set[int]]:
        """In a thread: (monotonic time from before the statement, ids still held). Raises when storage is away."""
        started = self._clock.monotonic()
        epochs = {held.claim.slice_id: held.claim.epoch for held in due}
        return started, renew_if_held(self._db, self._owner, epochs)

    def renewed(self, due: Iterable[HeldSlice], started: float, kept: set[int]) -> list[HeldSlice]:
        """Back on the loop: note the new times; returns the slices that were lost."""
        lost = []
        for held in due:
            if held.claim.slice_id in kept:
                held.leased_at = started
            elif held.claim.slice_id in self._held and not held.is_closing:
                held.stopped = "lost"
                lost.append(held)
        return lost
