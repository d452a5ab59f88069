"""Write the output and error files of one sealed batch, in input order, in constant memory.

Owns: which file a line goes to, entries for lines without a result, the count of what was written (each
line once, by a bitmap), and the case of a batch that was cancelled before it was read.
May not touch: rows of batches and files; the caller publishes what stands here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from batch.completions.output_line import own_error_line
from batch.domain.custom_ids import SeenIds
from batch.domain.errors import BatchmillError
from batch.domain.ids import line_id
from batch.domain.line import UNREADABLE, read_custom_id
from batch.files.blobs import BlobWriter, new_blob_name
from batch.files.jsonl import iter_lines
from batch.operations.read_files import read_input
from batch.operations.world import World
from batch.storage import output
from batch.storage.batches import BatchError, BatchRow
from batch.storage.files import FileRow

CANCELLED = ("batch_cancelled", "This request was not executed because the batch was cancelled.")
EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
_WINDOW_BYTES = 4 * 1024 * 1024
_WINDOW_LINES = 4000
_ERRORS_KEPT = 1000

Renew = Callable[[], None]


class LineFile:
    """One file on its way out: its blob is made with the first line. `renew` runs after every block."""

    def __init__(self, world: World) -> None:
        self.lines = 0
        self.writer: BlobWriter | None = None
        self._world = world
        self._hash = hashlib.sha256()

    def open(self) -> BlobWriter:
        if self.writer is None:
            self.writer = self._world.blobs.writer(new_blob_name("outputs", self._world.clock))
        return self.writer

    def write(self, lines: list[bytes]) -> None:
        if lines:
            block = b"\n".join(lines) + b"\n"
            self._hash.update(block)
            self.open().write(block)
            self.lines += len(lines)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


@dataclass(slots=True)
class Written:
    """What was written: `missing` of the error file's lines had no result; `seen` marks line numbers."""

    output: LineFile
    errors: LineFile
    missing: int = 0
    seen: bytearray = field(default_factory=bytearray)
    input_errors: list[BatchError] | None = None  # only where the input itself was walked

    @property
    def total(self) -> int:
        return self.output.lines + self.errors.lines

    @property
    def failed(self) -> int:
        return self.errors.lines - self.missing

    def commit(self) -> None:
        for file in (self.output, self.errors):
            if file.writer is not None:
                file.writer.commit()

    def abort(self) -> None:
        for file in (self.output, self.errors):
            if file.writer is not None:
                file.writer.abort()


def write_results(world: World, batch: BatchRow, written: Written, renew: Renew) -> None:
    """All lines of a batch that ran: results as recorded, the others as its status says."""
    reason = EXPIRED if batch.status == "in_progress" else CANCELLED
    with world.db.read() as conn:
        top = output.last_line(conn, batch.id)
    written.seen = bytearray(top + 1)
    after, window = 0, 500
    while after < top:
        upto = min(after + window, top)
        with world.db.read() as conn:
            rows = output.results_between(conn, batch.id, after, upto)
            is_whole = batch.status == "finalizing" or len(rows) == upto - after
            open_rows = [] if is_whole else output.open_between(conn, batch.id, after, upto)
        for line, _, _ in rows:
            written.seen[line] += 1
        written.output.write([text for _, ok, text in rows if ok])
        failed = [(line, text) for line, ok, text in rows if not ok]
        for line, custom_id in open_rows:
            written.seen[line] += 1
            failed.append((line, _unanswered(world, batch, line, custom_id, reason)))
        if open_rows:
            failed.sort()
        written.missing += len(open_rows)
        written.errors.write([entry for _, entry in failed])
        size = sum([len(text) for _, _, text in rows]) + len(open_rows) * 200
        window = max(1, min(_WINDOW_LINES, window * 2, window * _WINDOW_BYTES // max(size, 1)))
        after = upto
        renew()


def write_unread(world: World, batch: BatchRow, file: FileRow | None, written: Written, renew: Renew) -> None:
    """A batch cancelled while validating: every readable custom_id once as cancelled, bad lines as errors."""
    written.input_errors = []
    if file is None:
        return
    try:
        repeated = _repeated(world, file, renew)
        _write_cancelled(world, batch, file, written, repeated, renew)
    except BatchmillError as error:  # the blob is gone, or its compression is broken: what was read stands
        written.input_errors.append(BatchError(error.code, error.message, None, None))


def _repeated(world: World, file: FileRow, renew: Renew) -> frozenset[int]:
    seen = SeenIds()
    for _, custom_id in _read_ids(world, file, renew):
        if custom_id is not None:
            seen.add(custom_id)
    return seen.repeated()


def _write_cancelled(
    world: World, batch: BatchRow, file: FileRow, written: Written, repeated: frozenset[int], renew: Renew
) -> None:
    entries: list[bytes] = []
    first: set[str] = set()
    errors: Any = written.input_errors
    for number, custom_id in _read_ids(world, file, renew):
        if custom_id is None or custom_id in first:
            if len(errors) < _ERRORS_KEPT:
                errors.append(_input_error(number, custom_id))
            continue
        if hash(custom_id) in repeated:
            first.add(custom_id)
        entries.append(_unanswered(world, batch, number, custom_id, CANCELLED))
        if len(entries) >= 1000:
            written.missing += len(entries)
            written.errors.write(entries)
            entries = []
    written.missing += len(entries)
    written.errors.write(entries)


def _unanswered(world: World, batch: BatchRow, line: int, custom_id: str, reason: tuple[str, str]) -> bytes:
    ascii_only = world.settings.output_ascii
    return own_error_line(line_id(batch.public_id, line), custom_id, *reason, output_ascii=ascii_only)


def _read_ids(world: World, file: FileRow, renew: Renew) -> Iterator[tuple[int, str | None]]:
    """Each line's number and its custom_id, where one can be read."""
    for raw in iter_lines(read_input(world, file), max_line_bytes=world.settings.max_line_bytes):
        yield raw.number, read_custom_id(raw.data) if raw.data else None
        if raw.number % 1000 == 0:
            renew()


def _input_error(number: int, custom_id: str | None) -> BatchError:
    if custom_id is None:
        return BatchError(UNREADABLE, "This line has no readable custom_id.", "custom_id", number)
    return BatchError("duplicate_custom_id", f"The custom_id '{custom_id}' was used before.", "custom_id", number)
