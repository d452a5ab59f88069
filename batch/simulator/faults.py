"""Which request goes wrong: by share, by script, by content, by attempt.

Owns: picking the fault of a request, reproducibly from the configured seed, and counting hits.
May not touch: what the fault does; errors.py, answers and the server do that.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from fnmatch import fnmatchcase

from batch.simulator.config import Fault

HTTP_ERRORS = frozenset({
    "rate_limit", "status", "quota", "daily", "budget", "bad_key", "forbidden", "model_not_found", "context_length",
    "content_policy", "overloaded", "unavailable", "schema_failed", "too_many_tokens", "error_in_200",
})  # fmt: skip
TRANSPORT = frozenset({
    "hang", "reset", "slow_body", "reset_mid_body", "truncated_json", "close", "html", "empty_body",
    "huge_body", "redirect",
})  # fmt: skip


class FaultPicker:
    """Goes through the faults in order; the first that applies wins."""

    def __init__(self, faults: tuple[Fault, ...], seed: int) -> None:
        self._faults = faults
        self._seed = seed
        self._hits: Counter[int] = Counter()
        self._attempts: Counter[bytes] = Counter()
        self._counts_attempts = any(fault.first is not None for fault in faults)
        self._arrivals = 0

    def pick(self, content: bytes, raw_body: bytes, model: str, key: str) -> Fault | None:
        """`content` identifies messages, seed and parameters; arrivals are counted here, from 0."""
        if not self._faults:
            return None
        number, self._arrivals = self._arrivals, self._arrivals + 1
        attempt = 0
        if self._counts_attempts:
            attempt = self._attempts[content]
            self._attempts[content] += 1
        for index, fault in enumerate(self._faults):
            if self._applies(index, fault, number, attempt, content, raw_body, model, key):
                self._hits[index] += 1
                return fault
        return None

    def _applies(
        self, index: int, fault: Fault, number: int, attempt: int, content: bytes, raw_body: bytes, model: str, key: str
    ) -> bool:
        if fault.times is not None and self._hits[index] >= fault.times:
            return False
        if fault.first is not None and attempt >= fault.first:
            return False
        if fault.model is not None and not fnmatchcase(model, fault.model):
            return False
        if fault.key is not None and fault.key != key:
            return False
        if fault.contains is not None and fault.contains.encode() not in raw_body:
            return False
        if fault.unless is not None and fault.unless.encode() in raw_body:
            return False
        if fault.on and number not in fault.on:
            return False
        return fault.rate is None or fraction(self._seed, index, content if fault.sticky else number) < fault.rate


def fraction(seed: int, salt: int, what: int | bytes) -> float:
    """A reproducible number in [0, 1)."""
    text = what if isinstance(what, bytes) else b"%d" % what
    digest = hashlib.blake2b(b"%d|%d|" % (seed, salt) + text, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def gaussian(seed: int, salt: int, what: int) -> float:
    """A reproducible, nearly normal number: twelve uniforms less six."""
    digest = hashlib.blake2b(b"%d|%d|g|%d" % (seed, salt, what), digest_size=48).digest()
    return sum(int.from_bytes(digest[i : i + 4], "big") for i in range(0, 48, 4)) / 2**32 - 6.0
