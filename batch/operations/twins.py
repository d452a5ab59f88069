"""Exact duplicates within a batch, for `options.dedupe`.

Owns: which requests may share an answer: the same body on the same route, at temperature 0 or with a seed.
May not touch: copying the answer (answer_copies).
"""

from __future__ import annotations

from hashlib import blake2b

import orjson


class Twins:
    """Remembers 16 bytes a request that may be shared; nothing at all when it is off."""

    def __init__(self, is_on: bool) -> None:
        self.is_on = is_on
        self._first: dict[bytes, int] = {}

    def find(self, line: int, route: int, text: str | None) -> int | None:
        """The earlier line with the same request; None makes this one the first. `text` None: too large to stand in
        its row, and alone."""
        if not self.is_on or text is None:
            return None
        body = orjson.loads(text)
        if body.get("temperature") != 0 and body.get("seed") is None:
            return None
        request = orjson.dumps([route, body], option=orjson.OPT_SORT_KEYS)
        first = self._first.setdefault(blake2b(request, digest_size=16).digest(), line)
        return None if first == line else first
