"""Give duplicates (`options.dedupe`) the answer of the line that they copy.

Owns: turning one output line into another line's. Recording is storage.results', which counts, seals
and drops what came twice. May not touch: which lines are copies (twins). Called by a sweep.
"""

from __future__ import annotations

import orjson

from batch.domain.ids import line_id
from batch.domain.result import LineResult
from batch.operations.world import World
from batch.storage import batches, output
from batch.storage.batches import BatchRow
from batch.storage.results import record_group

_PER_PASS = 500


def answer_due_copies(world: World) -> int:
    """One pass over running batches with dedupe; returns how many lines were answered."""
    with world.db.read() as conn:
        due = output.batches_with_copies(conn, 50)
    return sum(answer_copies(world, batch_id) for batch_id in due)


def answer_copies(world: World, batch_id: int) -> int:
    """Answer up to 500 duplicates of one batch whose first line has a result."""
    with world.db.read() as conn:
        batch = batches.load_batch(conn, batch_id)
        found = output.copies_to_answer(conn, batch_id, _PER_PASS)
    if not found:
        return 0
    rows = [_copy(batch, *copy) for copy in found]
    report = record_group(world.db, rows, "copies")
    for sealed in report.sealed_batches:
        world.bells.finalize(sealed)
    return report.recorded


def _copy(batch: BatchRow, line: int, custom_id: str, ok: bool, code: str | None, text: str) -> LineResult:
    entry = orjson.loads(text)
    first = entry["custom_id"]
    entry["id"], entry["custom_id"] = line_id(batch.public_id, line), custom_id
    entry["batchmill"] = {"copy_of": first}
    answer = orjson.dumps(entry)
    for raw, escaped in ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029")):
        answer = answer.replace(raw, escaped)
    return LineResult(batch.id, line, custom_id, ok, answer, code=code, cost_usd=0.0, facts=("deduplicated",))
