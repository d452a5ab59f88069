"""The recorder: one thread per process that commits results in groups.

Owns: a bounded queue between the event loop and the database. It gathers for at most 50 ms, since a commit
has a fixed price; with the database away it keeps everything and tries again, also after leases are lost.
May not touch: calls, leases; what a group comes to is told to `on_recorded`, in this thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError, SQLAlchemyError

from batch.clock import SYSTEM_CLOCK
from batch.domain.errors import Unavailable
from batch.domain.result import LineResult
from batch.settings import GROUP_ROWS, LINGER_S, RECORDER_BYTES, RECORDER_ROWS
from batch.storage.claims import SliceClaim
from batch.storage.results import GroupReport
from batch.telemetry import emit

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 5.0

Record = Callable[[Sequence[LineResult], Sequence[SliceClaim]], GroupReport]


@dataclass(slots=True)
class Group:
    """What one commit stores: rows, and the slices that these rows finish."""

    rows: list[LineResult] = field(default_factory=list)
    closing: list[SliceClaim] = field(default_factory=list)


class Recorder:
    """put() never blocks and never fails; whoever starts calls asks `has_room` first."""

    def __init__(self, record: Record, on_recorded: Callable[[Group, GroupReport], None]) -> None:
        self._record = record
        self._on_recorded = on_recorded
        self._clock = SYSTEM_CLOCK
        self._queue: deque[tuple[LineResult | None, SliceClaim | None]] = deque()
        self._put_rows = self._put_bytes = 0    # written by the putting thread only
        self._done_rows = self._done_bytes = 0  # written by the recorder only
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._stopping = threading.Event()
        self._give_up_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def has_room(self) -> bool:
        """False when 2,000 rows or 64 MB wait: then no new call may start."""
        return self.waiting_rows < RECORDER_ROWS and self._put_bytes - self._done_bytes < RECORDER_BYTES

    @property
    def waiting_rows(self) -> int:
        return self._put_rows - self._done_rows

    def put(self, row: LineResult | None, closing: SliceClaim | None = None) -> None:
        """Hand over a result, and with the last one of a slice its claim. From one thread only."""
        if row is not None:
            self._put_rows += 1
            self._put_bytes += len(row.output)
        self._queue.append((row, closing))
        waiting = len(self._queue)
        if waiting == 1:
            self._wake.set()
        elif waiting >= GROUP_ROWS:
            self._hurry.set()

    def stop(self, timeout_s: float) -> int:
        """Record what is there, within `timeout_s`. Returns how many rows could not be stored."""
        self._give_up_at = self._clock.monotonic() + timeout_s
        self._stopping.set()
        self._wake.set()
        self._hurry.set()
        self._thread.join(timeout_s + 1.0)
        return self.waiting_rows

    def _run(self) -> None:
        while True:
            self._wake.clear()
            if not self._queue:
                if self._stopping.is_set():
                    return
                self._wake.wait()
                continue
            self._linger()
            group = self._take()
            if not self._commit(group):
                return
            self._done_rows += len(group.rows)
            self._done_bytes += sum(len(row.output) for row in group.rows)

    def _linger(self) -> None:
        """Until a whole group waits, or 50 ms: small groups would spend more on commits than on rows."""
        self._hurry.clear()
        if len(self._queue) < GROUP_ROWS and not self._stopping.is_set():
            self._hurry.wait(LINGER_S)

    def _take(self) -> Group:
        group = Group()
        while self._queue and len(group.rows) < GROUP_ROWS:
            row, closing = self._queue.popleft()
            if row is not None:
                group.rows.append(row)
            if closing is not None:
                group.closing.append(closing)
        return group

    def _commit(self, group: Group) -> bool:
        """Store the group, however long it takes. False only when a stop's time is over."""
        wait_s = RETRY_FIRST_S
        while True:
            started = self._clock.monotonic()
            try:
                report = self._store(group)
            except Exception as error:  # the wall of one group: this thread must outlive it
                emit("storage_retry", work="record", error=type(error).__name__, rows=len(group.rows))
                if self._give_up_at is not None and self._clock.monotonic() > self._give_up_at:
                    return False
                self._clock.sleep(self._clock.uniform(wait_s / 2, wait_s))
                wait_s = min(RETRY_MAX_S, wait_s * 2)
                continue
            self._tell(group, report, self._clock.monotonic() - started)
            return True

    def _store(self, group: Group) -> GroupReport:
        """A group that can never be stored holds a row that cannot: find it, keep the others. What may pass raises:
        the group comes again, and what it stored already is dropped then."""
        try:
            return self._record(group.rows, group.closing)
        except Exception as error:  # the wall of one group: which row it is, the next steps find out
            if _may_pass(error):
                raise
            emit("storage_retry", work="record", error=type(error).__name__, rows=len(group.rows))
        total = GroupReport()
        for row in group.rows:
            try:
                report = self._record([row], [])
            except Exception as error:  # the wall of one row: its line is asked again when the lease has run out
                if _may_pass(error):
                    raise
                emit("result_dropped", reason="unstorable", batch_id=row.batch_id, line=row.line,
                     error=type(error).__name__)  # fmt: skip
                continue
            total.recorded += report.recorded
            total.dropped += report.dropped
            total.sealed_batches += report.sealed_batches
            total.paused_batches += report.paused_batches
        return total

    def _tell(self, group: Group, report: GroupReport, seconds: float) -> None:
        emit("results_recorded", rows=len(group.rows), seconds=seconds)
        for reason in report.dropped.elements():
            emit("result_dropped", reason=reason)
        for batch_id in report.sealed_batches:
            emit("batch_state", status="sealed", batch_id=batch_id)
        try:
            self._on_recorded(group, report)
        except Exception as error:  # the wall of the listener: it may be late or gone, the rows are stored
            emit("attempt_failed", error=type(error).__name__, where="after_record")


def _may_pass(error: Exception) -> bool:
    """Away, busy, full: waited out. A row that the database refuses is another matter."""
    if isinstance(error, DataError | IntegrityError | ProgrammingError):
        return False
    return isinstance(error, Unavailable | OSError | SQLAlchemyError)
