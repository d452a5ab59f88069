"""Ingest: read the input once, store its lines in chunks, and start the batch in one last transaction.

Owns: the walk over the file, resuming where a dead ingest stopped, every bad line's report, and the
refusals that need the whole file (duplicates, budget, project limits, emptiness).
May not touch: how a line is judged (accept_line), SQL (storage.ingest). Third step of the journey.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

from sqlalchemy import Connection

from batch.completions.output_line import own_error_line
from batch.completions.schema import SchemaCache
from batch.domain.custom_ids import SeenIds
from batch.domain.errors import InvalidRequest, NotFound, TooLarge
from batch.domain.ids import line_id
from batch.domain.limits import Limits
from batch.domain.line import LineProblem
from batch.domain.options import BatchOptions
from batch.files.jsonl import RawLine, inflate, iter_lines
from batch.operations.accept_line import LineGate
from batch.operations.dedupe import Twins
from batch.operations.end_batches import seal_batch_if_quiet
from batch.operations.routing import RouteBook
from batch.operations.slicing import RouteLines, cut_by_prefix, cut_slices, lines_per_slice
from batch.operations.weigh_batch import BatchWeight, refuse_batch, warn_batch
from batch.operations.world import World
from batch.storage import batches, files, ingest, jobs, projects, webhooks
from batch.storage.batches import BatchError, BatchRow
from batch.storage.files import FileRow
from batch.storage.ingest import Chunk, Cut, RefusedRow, Start
from batch.storage.jobs import Job
from batch.storage.lanes import LaneRow
from batch.storage.projects import Project

CHUNK_ROWS = 2000
CHUNK_BYTES = 4 * 1024 * 1024
LOCK_S = 0.04  # SQLite's write lock a chunk; the limit for any transaction is 50 ms
_READ_BYTES = 1 << 20

Stop = Callable[[], bool]


def ingest_batch(world: World, batch_id: int, owner: str, should_stop: Stop = lambda: False) -> str:
    """What came of it: "started", "finalizing", "failed", or "idle" (no such job to do, or another does it),
    "lost" (cancelled, or taken over), "stopped" (as asked; the next ingest goes on from here).
    """
    epoch = world.db.transact(jobs.take_job_if_free, batch_id, Job.INGEST, owner)
    if epoch is None:
        return "idle"
    with world.db.read() as conn:
        batch = batches.load_batch(conn, batch_id)
        project = projects.load_project(conn, batch.project_id)
        file = files.find_file(conn, project.id, batch.input_file)
        if file is None and batch.ingest_line and batch.input_file_id:
            file = files.load_file(conn, batch.input_file_id)  # what was begun is ended, deleted since or not
    walk = _Ingest(world, batch, project, epoch, should_stop)
    if file is None:
        message = f"Cannot find file {batch.input_file}, or project {project.public_id} does not have access to it."
        return walk.reject([BatchError("invalid_request", message, "file_id", None)])
    try:
        return walk.run(file)
    except NotFound:
        message = f"The content of {file.public_id} is gone."
        return walk.reject([BatchError("invalid_request", message, "file_id", None)])
    except (InvalidRequest, TooLarge) as error:  # of the compressed stream as a whole
        return walk.reject([BatchError(error.code, error.message, None, None)])
    finally:
        walk.schemas.close()


class _Lost(Exception):
    """The job's epoch moved on, or the batch was cancelled: nothing more may be written."""


class _Ingest:
    """One walk over one file, under one epoch."""

    def __init__(self, world: World, batch: BatchRow, project: Project, epoch: int, should_stop: Stop) -> None:
        self.schemas = SchemaCache()
        self._world = world
        self._batch = batch
        self._project = project
        self._epoch = epoch
        self._should_stop = should_stop
        self._options = BatchOptions.parse(batch.options)
        self._book = RouteBook(world, batch.endpoint, self._options, project.allowed_providers, batch.routes)
        self._twins = Twins(self._options.dedupe)
        self._seen = SeenIds()
        self._groups: dict[int, RouteLines] = {}
        self._errors = batch.ingest_errors
        self._weight = BatchWeight()
        self._chunk_rows = CHUNK_ROWS // 4
        self._held_s = 0.0
        self._freed_at = world.clock.monotonic()

    def run(self, file: FileRow) -> str:
        gate = LineGate(
            self._world.settings, self._batch.id, self._batch.endpoint, self._options, self._book, self.schemas,
            is_seekable=file.encoding is None,
        )  # fmt: skip
        try:
            self._recall(gate)
            if self._walk(self._lines(file), gate):
                return self._finish(gate)
        except _Lost:
            return "lost"
        self._world.db.transact(jobs.release_job_if_held, self._batch.id, self._epoch)
        return "stopped"

    def reject(self, errors: list[BatchError]) -> str:
        """`failed`, with its webhook event, in one transaction."""

        def write(conn: Connection) -> bool:
            done = ingest.reject_if_held(conn, self._batch.id, self._epoch, errors, errors_before=self._errors)
            if done:
                webhooks.enqueue_event(conn, self._batch, "batch.failed")
            return done

        if not self._world.db.transact(write):
            return "lost"
        self._world.bells.deliver_webhooks()
        return "failed"

    # the walk

    def _recall(self, gate: LineGate) -> None:
        """Rebuild from stored rows what a dead ingest knew: ids, routes, tokens, twins."""
        if self._batch.ingest_line == 0:
            return
        with self._world.db.read() as conn:
            for row in ingest.stored_lines(conn, self._batch.id, with_body=self._twins.is_on):
                self._twins.find(row.line, row.route, row.body)
                self._count(row.line, row.custom_id, row.est_input, row.est_output, row.route, row.copy_of)
            for _, custom_id in ingest.refused_ids(conn, self._batch.id):
                self._seen.add(custom_id)
                self._weight.refused += 1
        gate.first_model = self._batch.model
        gate.is_mixed = self._weight.accepted > 0 and self._batch.model is None

    def _lines(self, file: FileRow) -> Iterator[RawLine]:
        settings, done = self._world.settings, self._batch.ingest_offset
        if file.encoding == "gzip":
            blocks = self._world.blobs.read(file.blob, chunk_bytes=_READ_BYTES)
            chunks = _after(done, inflate(blocks, max_bytes=settings.max_file_bytes))
        else:
            chunks = self._world.blobs.read(file.blob, done, chunk_bytes=_READ_BYTES)
        return iter_lines(
            chunks, max_line_bytes=settings.max_line_bytes, start_line=self._batch.ingest_line, start_offset=done
        )

    def _walk(self, lines: Iterable[RawLine], gate: LineGate) -> bool:
        """False when it was asked to stop in the middle."""
        pending, limit = Chunk(), self._world.settings.max_requests_per_batch
        last = None
        for raw in lines:
            if pending.lines >= self._chunk_rows or pending.size >= CHUNK_BYTES:
                self._store(pending, gate.model, raw.number - 1, raw.offset)
                pending = Chunk()
                if self._should_stop():
                    return False
            self._take(raw, gate, pending)
            pending.lines += 1
            pending.size += raw.length
            last = raw
            if self._weight.lines > limit:
                message = f"A batch holds at most {limit:,} requests."
                pending.errors.append(BatchError("too_many_tasks", message, None, None))
                break
        if last is not None:
            self._store(pending, gate.model, last.number, last.offset + last.length)
        return True

    def _take(self, raw: RawLine, gate: LineGate, pending: Chunk) -> None:
        accepted = gate.accept(raw)
        if isinstance(accepted, LineProblem):
            self._weight.refused += 1
            self._refuse(raw.number, accepted, pending)
            return
        copy_of = self._twins.find(raw.number, accepted.route, accepted.body)
        if copy_of is not None:
            accepted = accepted._replace(copy_of=copy_of)
        pending.rows.append(accepted)
        self._count(raw.number, accepted.custom_id, accepted.est_input, accepted.est_output, accepted.route, copy_of)

    def _count(
        self, line: int, custom_id: str, est_input: int, est_output: int, route: int, copy_of: int | None
    ) -> None:
        self._seen.add(custom_id)
        self._weight.accepted += 1
        if copy_of is not None:
            return
        self._weight.input_tokens += est_input
        self._weight.output_tokens += est_output
        group = self._groups.get(route)
        if group is None:
            group = self._groups[route] = RouteLines()
        group.add(line, est_input + est_output)

    def _refuse(self, number: int, problem: LineProblem, pending: Chunk) -> None:
        if problem.custom_id is not None:
            self._seen.add(problem.custom_id)
        if self._options.on_invalid_line == "fail" or problem.custom_id is None:
            pending.errors.append(BatchError(problem.code, problem.message, problem.param, number))
            return
        note = {"code": problem.code, "param": problem.param}
        output = own_error_line(
            line_id(self._batch.public_id, number), problem.custom_id, "invalid_request", problem.message, note,
            output_ascii=self._world.settings.output_ascii,
        )  # fmt: skip
        pending.refused.append(RefusedRow(number, problem.custom_id, "invalid_request", output.decode()))

    def _store(self, chunk: Chunk, model: str | None, next_line: int, next_offset: int) -> None:
        self._yield_turn()

        def write() -> bool:
            began = self._world.clock.monotonic()
            with self._world.db.write() as conn:
                held = ingest.store_chunk_if_held(
                    conn, self._batch.id, self._epoch, chunk, errors_before=self._errors, routes=self._book.routes,
                    model=model, ingest_line=next_line, ingest_offset=next_offset,
                )  # fmt: skip
            self._held_s = self._world.clock.monotonic() - began
            return held

        if not self._world.db.retrying(write):
            raise _Lost
        self._errors += len(chunk.errors)
        self._freed_at = self._world.clock.monotonic()
        if chunk.lines >= self._chunk_rows:  # a full chunk tells how many rows fit into the time
            fitting = int(self._chunk_rows * LOCK_S / max(self._held_s, 1e-4))
            self._chunk_rows = max(50, min(CHUNK_ROWS, fitting, self._chunk_rows * 2))

    def _yield_turn(self) -> None:
        """Others may write for as long as the last chunk held SQLite's lock; checking lines is part of it."""
        if self._world.db.is_sqlite:
            passed = self._world.clock.monotonic() - self._freed_at
            if passed < self._held_s:
                self._world.clock.sleep(self._held_s - passed)

    # the end

    def _finish(self, gate: LineGate) -> str:
        duplicates = self._duplicates()
        if duplicates or self._errors:
            return self.reject(duplicates)
        refusal = refuse_batch(self._world, self._batch, self._project, self._book, self._weight)
        if refusal is not None:
            return self.reject([refusal])
        lanes = self._book.lanes()
        limits = {
            lane.id: self._world.catalog.providers[lane.provider].limits(lane.model, lane.learned)
            for lane in lanes.values()
            if lane.provider in self._world.catalog.providers
        }
        start = Start(
            total=self._weight.lines,
            refused=self._weight.refused,
            est_input=self._weight.input_tokens,
            est_output=self._weight.output_tokens,
            model=gate.model,
            warnings=warn_batch(self._world, self._batch, self._groups, self._book.routes, lanes, limits),
            cuts=self._cut(lanes, limits),
        )
        status = self._world.db.transact(ingest.start_if_held, self._batch.id, self._epoch, start)
        if status is None:
            return "lost"
        if status == "finalizing":
            self._world.bells.finalize(self._batch.id)
            return "finalizing"
        for lane_id in {cut.route[0] for cut in start.cuts}:
            self._world.bells.drain(lane_id, lanes[lane_id].queue)
        if self._batch.expires_at is not None and self._batch.expires_at <= self._world.clock.now() * 1000:
            seal_batch_if_quiet(self._world, self._batch.id)  # the window passed while it was read
        return "started"

    def _cut(self, lanes: Mapping[int, LaneRow], limits: Mapping[int, Limits]) -> list[Cut]:
        routes = self._book.routes
        sorted_ones = [n for n in self._groups if self._book.goes_by_prefix(lanes[routes[n][0]].provider)]
        cuts = cut_slices({n: self._groups[n] for n in self._groups if n not in sorted_ones}, routes, limits)
        for number in sorted_ones:
            group, route = self._groups[number], routes[number]
            size = lines_per_slice(group, limits.get(route[0], Limits()))
            with self._world.db.read() as conn:
                rows = ingest.lines_by_prefix(conn, self._batch.id, number)
                cuts += cut_by_prefix(rows, len(group.lines), route, size)
        return cuts

    def _duplicates(self) -> list[BatchError]:
        """Equal hashes are candidates; the texts decide."""
        repeated = self._seen.repeated()
        if not repeated:
            return []
        first: set[str] = set()
        found = []
        with self._world.db.read() as conn:
            stored = ((row.line, row.custom_id) for row in ingest.stored_lines(conn, self._batch.id))
            for line, custom_id in itertools.chain(ingest.refused_ids(conn, self._batch.id), stored):
                if hash(custom_id) in repeated:
                    if custom_id in first:
                        found.append(_duplicate(custom_id, line))
                    first.add(custom_id)
        return found


def _duplicate(custom_id: str, line: int) -> BatchError:
    message = (
        f"The custom_id '{custom_id}' for this request is a duplicate of another request. "
        "The custom_id parameter must be unique for each request in a batch."
    )
    return BatchError("duplicate_custom_id", message, "custom_id", line)


def _after(skipped: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        if skipped >= len(chunk):
            skipped -= len(chunk)
            continue
        yield chunk[skipped:] if skipped else chunk
        skipped = 0
