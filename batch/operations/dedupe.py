"""Exact duplicates within a batch share one answer, for `options.dedupe`.

Owns: which requests may share it (the same body on the same route, at temperature 0 or with a seed), and giving
duplicates the answer of their first line, called by a sweep. Recording is storage.results', which counts, seals
and drops what came twice.
"""

from __future__ import annotations

from hashlib import blake2b

import orjson

from batch.completions.output_line import copied_line
from batch.domain.ids import line_id
from batch.domain.result import LineResult
from batch.operations.world import World
from batch.storage import batches, output
from batch.storage.results import record_group

_PER_PASS = 500


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


def answer_due_copies(world: World) -> int:
    """One pass over running batches with dedupe; returns how many lines were answered."""
    with world.db.read() as conn:
        due = output.batches_with_copies(conn, 50)
    return sum(_answer_copies(world, batch_id) for batch_id in due)


def _answer_copies(world: World, batch_id: int) -> int:
    with world.db.read() as conn:
        batch = batches.load_batch(conn, batch_id)
        found = output.copies_to_answer(conn, batch_id, _PER_PASS)
    if not found:
        return 0
    ascii_only = world.settings.output_ascii
    rows = [
        LineResult(
            batch_id, line, custom_id, ok,
            copied_line(text, line_id(batch.public_id, line), custom_id, output_ascii=ascii_only),
            code=code, cost_usd=0.0, facts=("deduplicated",),
        )
        for line, custom_id, ok, code, text in found
    ]  # fmt: skip
    report = record_group(world.db, rows, "copies")
    for sealed in report.sealed_batches:
        world.bells.finalize(sealed)
    return report.recorded
