"""Exact duplicates within a batch, for `options.dedupe`.

Owns: which requests may share an answer: the same body on the same route, at temperature 0 or with a seed.
May not touch: copying the answer (answer_copies). What a dead ingest had seen is forgotten: its
duplicates are then answered twice, which costs calls and is never wrong.
"""

from __future__ import annotations

from hashlib import blake2b

import orjson

from batch.storage.ingest import RequestRow


class Twins:
    """Remembers 16 bytes a request that may be shared; nothing at all when it is off."""

    def __init__(self, is_on: bool) -> None:
        self._is_on = is_on
        self._first: dict[bytes, int] = {}

    def find(self, row: RequestRow) -> int | None:
        """The earlier line with the same request; None makes this one the first."""
        if not self._is_on or row.body is None:
            return None
        body = orjson.loads(row.body)
        if body.get("temperature") != 0 and body.get("seed") is None:
            return None
        text = orjson.dumps([row.route, body], option=orjson.OPT_SORT_KEYS)
        first = self._first.setdefault(blake2b(text, digest_size=16).digest(), row.line)
        return None if first == row.line else first
