"""Which request goes wrong: by share, by script, by content, by attempt.

Owns: picking the fault of a request, reproducibly from the configured seed, and counting hits.
May not touch: what the fault does; errors.py, answers and the server do that.
"""

from __future__ import annotations

import hashlib
from collections import Counter

from batch.simulator.config import Fault


class FaultPicker:
    """Goes through the faults in order; the first that applies wins."""

    def __init__(self, faults: tuple[Fault, ...], seed: int) -> None:
        self._faults = faults
        self._seed = seed
        self._hits: Counter[int] = Counter()
        self._attempts: Counter[bytes] = Counter()
        self._counts_attempts = any(fault.first is not None for fault in faults)
        self._arrivals = 0

    def pick(self, content: bytes, raw_body: bytes) -> Fault | None:
        """`content` identifies messages and seed; arrivals are counted here, from 0."""
        if not self._faults:
            return None
        number, self._arrivals = self._arrivals, self._arrivals + 1
        attempt = 0
        if self._counts_attempts:
            attempt = self._attempts[content]
            self._attempts[content] += 1
        for index, fault in enumerate(self._faults):
            if (
                (fault.times is None or self._hits[index] < fault.times)
                and (fault.first is None or attempt < fault.first)
                and (fault.contains is None or fault.contains.encode() in raw_body)
                and (fault.unless is None or fault.unless.encode() not in raw_body)
                and (not fault.on or number in fault.on)
                and (fault.rate is None
                     or fraction(self._seed, index, content if fault.sticky else number) < fault.rate)
            ):  # fmt: skip
                self._hits[index] += 1
                return fault
        return None


def fraction(seed: int, salt: int, what: int | bytes) -> float:
    """A reproducible number in (0, 1)."""
    text = what if isinstance(what, bytes) else b"%d" % what
    digest = hashlib.blake2b(b"%d|%d|" % (seed, salt) + text, digest_size=8).digest()
    return (int.from_bytes(digest[:6], "big") + 0.5) / 2**48
