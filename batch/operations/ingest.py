"""Ingest: read the input once, store its lines in chunks, and start the batch in one last transaction.

Owns: the walk over the file, resuming where a dead ingest stopped, every bad line's report, and the
refusals that need the whole file (duplicates, budget, project limits, emptiness).
May not touch: how a line is judged (accept_line), SQL (storage.ingest). Third step of the journey.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from batch.completions.output_line import own_error_line
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
from batch.operations.weigh_batch import refuse_batch, warn_batch
from batch.operations.world import World
from batch.providers.catalog import Hop
from batch.storage import batches, files, ingest, jobs, projects, webhooks
from batch.storage.batches import BatchError, BatchRow
from batch.storage.files import FileRow
from batch.storage.ingest import Chunk, Cut, RefusedRow, RequestRow, Weight
from batch.storage.jobs import Job
from batch.storage.lanes import LaneRow, ensure_lane, get_lanes
from batch.storage.projects import Project

CHUNK_ROWS = 2000
CHUNK_BYTES = 4 * 1024 * 1024
LOCK_S = 0.04  # SQLite's write lock a chunk; the limit for any transaction is 50 ms

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
    walk = _Ingest(world, batch, project, file, epoch, should_stop)
    try:
        if file is not None:
            return walk.run(file)
        message = f"Cannot find file {batch.input_file}, or project {project.public_id} does not have access to it."
        return walk.reject([BatchError("invalid_request", message, "file_id", None)])
    except NotFound:
        message = f"The content of {batch.input_file} is gone."
        return walk.reject([BatchError("invalid_request", message, "file_id", None)])
    except (InvalidRequest, TooLarge) as error:  # of the compressed stream as a whole
        return walk.reject([BatchError(error.code, error.message, None, None)])
    finally:
        walk.gate.schemas.close()


class _Lost(Exception):
    """The job's epoch moved on, or the batch was cancelled: nothing more may be written."""


class _Ingest:
    """One walk over one file, under one epoch."""

    def __init__(
        self, world: World, batch: BatchRow, project: Project, file: FileRow | None, epoch: int, should_stop: Stop
    ) -> None:
        self._world = world
        self._batch = batch
        self._project = project
        self._epoch = epoch
        self._should_stop = should_stop
        self._options = BatchOptions.parse(batch.options)
        self._book = RouteBook(
            world.catalog, world.settings, batch.endpoint, self._options, self._enlist,
            clock=world.clock, allowed=project.allowed_providers, routes=batch.routes or (),
        )  # fmt: skip
        is_seekable = file is None or file.encoding is None
        self.gate = LineGate(self._book, batch_id=batch.id, is_seekable=is_seekable)
        self._twins = Twins(self._options.dedupe)
        self._seen = SeenIds()
        self._groups: dict[int, RouteLines] = {}
        self._errors = batch.ingest_errors
        self._weight = Weight()
        self._chunk_rows = CHUNK_ROWS // 4
        self._held_s = 0.0
        self._freed_at = world.clock.monotonic()

    def run(self, file: FileRow) -> str:
        try:
            self._recall()
            if self._walk(self._lines(file)):
                return self._finish()
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

    def _enlist(self, hops: Sequence[Hop]) -> list[tuple[int, dict[str, Any]]]:
        served = [(self._world.catalog.providers[hop.provider], hop) for hop in hops]

        def ensure(conn: Connection) -> list[LaneRow]:
            ids = [ensure_lane(conn, hop.provider, by.key_id, hop.model, by.queue) for by, hop in served]
            rows = {row.id: row for row in get_lanes(conn, ids)}
            return [rows[lane_id] for lane_id in ids]

        return [(row.id, row.learned) for row in self._world.db.transact(ensure)]

    # the walk

    def _recall(self) -> None:
        """Rebuild from stored rows what a dead ingest knew: ids, routes, tokens, twins."""
        if self._batch.ingest_line == 0:
            return
        with self._world.db.read() as conn:
            for row in ingest.stored_lines(conn, self._batch.id, with_body=self._twins.is_on):
                self._twins.find(row.line, row.route, row.body)
                self._count(row)
            for _, custom_id in ingest.refused_ids(conn, self._batch.id):
                self._seen.add(custom_id)
                self._weight.refused += 1
        self.gate.first_model = self._batch.model
        self.gate.is_mixed = self._weight.accepted > 0 and self._batch.model is None

    def _lines(self, file: FileRow) -> Iterator[RawLine]:
        settings, done = self._world.settings, self._batch.ingest_offset
        if file.encoding == "gzip":
            blocks = self._world.blobs.read(file.blob)
            chunks = _after(done, inflate(blocks, max_bytes=settings.max_file_bytes))
        else:
            chunks = self._world.blobs.read(file.blob, done)
        return iter_lines(
            chunks, max_line_bytes=settings.max_line_bytes, start_line=self._batch.ingest_line, start_offset=done
        )

    def _walk(self, lines: Iterable[RawLine]) -> bool:
        """False when it was asked to stop in the middle."""
        pending, limit = Chunk(), self._world.settings.max_requests_per_batch
        last = None
        for raw in lines:
            if pending.lines >= self._chunk_rows or pending.size >= CHUNK_BYTES:
                self._store(pending, raw.number - 1, raw.offset)
                pending = Chunk()
                if self._should_stop():
                    return False
            self._take(raw, pending)
            pending.lines += 1
            pending.size += raw.length
            last = raw
            if self._weight.lines > limit:
                message = f"A batch holds at most {limit:,} requests."
                pending.errors.append(BatchError("too_many_tasks", message, None, None))
                break
        if last is not None:
            self._store(pending, last.number, last.offset + last.length)
        return True

    def _take(self, raw: RawLine, pending: Chunk) -> None:
        accepted = self.gate.accept(raw)
        if isinstance(accepted, LineProblem):
            self._weight.refused += 1
            self._refuse(raw.number, accepted, pending)
            return
        copy_of = self._twins.find(raw.number, accepted.route, accepted.body)
        if copy_of is not None:
            accepted = accepted._replace(copy_of=copy_of)
        pending.rows.append(accepted)
        self._count(accepted)

    def _count(self, row: RequestRow) -> None:
        self._seen.add(row.custom_id)
        self._weight.accepted += 1
        if row.copy_of is not None:
            return
        self._weight.est_input += row.est_input
        self._weight.est_output += row.est_output
        group = self._groups.get(row.route)
        if group is None:
            group = self._groups[row.route] = RouteLines()
        group.add(row.line, row.est_input + row.est_output)

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

    def _store(self, chunk: Chunk, next_line: int, next_offset: int) -> None:
        self._yield_turn()

        def write() -> bool:
            began = self._world.clock.monotonic()
            with self._world.db.write() as conn:
                held = ingest.store_chunk_if_held(
                    conn, self._batch.id, self._epoch, chunk, errors_before=self._errors, routes=self._book.routes,
                    model=self.gate.model, ingest_line=next_line, ingest_offset=next_offset,
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

    def _finish(self) -> str:
        duplicates = self._duplicates()
        if duplicates or self._errors:
            return self.reject(duplicates)
        with self._world.db.read() as conn:
            ids = {lane_id for route in self._book.routes for lane_id in route}
            lanes = {lane.id: lane for lane in get_lanes(conn, ids)}
        refusal = refuse_batch(self._world, self._batch, self._project, lanes.values(), self._weight)
        if refusal is not None:
            return self.reject([refusal])
        limits = {
            lane.id: self._world.catalog.providers[lane.provider].limits(lane.model, lane.learned)
            for lane in lanes.values()
            if lane.provider in self._world.catalog.providers
        }
        warnings = warn_batch(self._world, self._batch, self._groups, self._book.routes, lanes, limits)
        cuts = self._cut(lanes, limits)
        status = self._world.db.transact(
            ingest.start_if_held, self._batch.id, self._epoch, self._weight, cuts,
            model=self.gate.model, warnings=warnings,
        )  # fmt: skip
        if status is None:
            return "lost"
        if status == "finalizing":
            self._world.bells.finalize(self._batch.id)
            return "finalizing"
        for lane_id in {cut.route[0] for cut in cuts}:
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
