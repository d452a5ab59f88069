"""What one input line came to: the row that the recorder stores and finalize writes out.

Owns: LineResult. Built by the executor (and by ingest for invalid lines), stored by
storage.results. `output` is the whole JSONL line, without its newline.
"""

from __future__ import annotations

from dataclasses import dataclass

from batch.domain.outcome import NO_USAGE, Usage


@dataclass(slots=True)
class LineResult:
    """One line's end. `code` is None for success, else a line error code or the HTTP error's code.

    `usage` is what the answer shows (prompt once); `billed` what the provider charged, re-asks and
    fan-out included. `cost_usd` is None when unknown. `facts` are counted into the batch's report,
    for instance ("emulated:n", "schema:mended", "refused", "served:mx4-core", "fingerprint:fp_1").
    """

    batch_id: int
    line: int
    custom_id: str
    ok: bool
    output: bytes
    code: str | None = None
    usage: Usage = NO_USAGE
    billed: Usage = NO_USAGE
    cost_usd: float | None = None
    facts: tuple[str, ...] = ()
    slice_id: int = 0
    epoch: int = 0
    reserved_usd: float = 0.0  # this line's part of its slice's reserve, under a budget
