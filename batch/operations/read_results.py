"""Read results while a batch runs: lines in the order of recording, behind a cursor without gaps.

Owns: the page's bounds in rows and bytes, and when there is nothing more to come.
May not touch: HTTP; the rows are storage.results'.
"""

from __future__ import annotations

from dataclasses import dataclass

from batch.domain.errors import InvalidRequest
from batch.domain.states import is_terminal
from batch.operations.read_batches import get_batch
from batch.operations.world import World
from batch.storage.results import results_after

MAX_LINES = 10_000
PAGE_BYTES = 8 * 1024 * 1024
_ROWS_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class ResultPage:
    """`lines` are whole JSONL lines without newline; `is_complete`: the batch has ended and this is the rest."""

    lines: list[str]
    next_after: int
    is_complete: bool


def read_results(world: World, project_id: int, public_id: str, *, after: int, limit: int) -> ResultPage:
    """Up to `limit` lines recorded after the cursor `after` (0 for all). Raises NotFound, InvalidRequest.

    Lines that a cancel or an expiry left without a result are in the error file only.
    """
    batch = get_batch(world, project_id, public_id)  # before the rows: what ended by now has all its rows
    if batch.purged_at is not None:
        raise InvalidRequest("The batch's result rows were purged; download its output and error files.")
    if batch.in_progress_at is None:  # what ingest refuses shows when the file is whole
        return ResultPage([], after, is_terminal(batch.status))
    lines: list[str] = []
    size = 0
    with world.db.read() as connection:
        while len(lines) < limit and size < PAGE_BYTES:
            wanted = min(_ROWS_AT_ONCE, limit - len(lines))
            rows = results_after(connection, batch.id, after, wanted)
            lines += [row.output for row in rows]
            size += sum(len(row.output) for row in rows)
            after = rows[-1].seq if rows else after
            if len(rows) < wanted:
                return ResultPage(lines, after, is_terminal(batch.status))
    return ResultPage(lines, after, is_complete=False)
