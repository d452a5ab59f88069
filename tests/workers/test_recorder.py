"""The recorder: groups, patience with a database that is away, and its bound."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from batch.domain.result import LineResult
from batch.settings import RECORDER_ROWS
from batch.storage.claims import SliceClaim
from batch.storage.results import GroupReport
from tests.harness.waiting import eventually
from workers.recorder import Group, Recorder


def row(line: int) -> LineResult:
    return LineResult(1, line, f"c{line}", True, b"{}")


class Store:
    """A database that can be away or refuse a line."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.sizes: list[int] = []
        self.away = threading.Event()
        self.refused: int | None = None
        self.told: list[Group] = []

    def record(self, rows: Sequence[LineResult], closing: Sequence[SliceClaim]) -> GroupReport:
        if self.away.is_set():
            raise OperationalError("", None, Exception("server closed the connection unexpectedly"))
        if self.refused in [r.line for r in rows]:
            raise IntegrityError("", None, Exception("refused"))
        self.rows += [r.line for r in rows]
        self.sizes.append(len(rows))
        return GroupReport(recorded=len(rows))

    def tell(self, group: Group, report: GroupReport) -> None:
        self.told.append(group)


@pytest.fixture
def store() -> Store:
    return Store()


def test_rows_that_come_together_are_committed_together(store: Store) -> None:
    recorder = Recorder(store.record, store.tell)
    for line in range(400):
        recorder.put(row(line))
    recorder.start()
    eventually(lambda: len(store.rows) == 400)
    assert store.sizes == [400]
    assert recorder.stop(5) == 0


def test_a_database_that_is_away_loses_nothing(store: Store) -> None:
    store.away.set()
    recorder = Recorder(store.record, store.tell)
    recorder.start()
    for line in range(50):
        recorder.put(row(line))
    eventually(lambda: recorder.waiting_rows == 50)
    store.away.clear()
    eventually(lambda: store.rows == list(range(50)))
    recorder.stop(5)


def test_it_has_no_room_when_two_thousand_rows_wait(store: Store) -> None:
    recorder = Recorder(store.record, store.tell)
    for line in range(RECORDER_ROWS):
        assert recorder.has_room
        recorder.put(row(line))
    assert not recorder.has_room
    recorder.start()
    eventually(lambda: recorder.has_room)
    recorder.stop(5)
    assert store.rows == list(range(RECORDER_ROWS))


def test_a_row_that_can_never_be_stored_does_not_hold_up_the_others(store: Store) -> None:
    store.refused = 3
    recorder = Recorder(store.record, store.tell)
    for line in range(6):
        recorder.put(row(line))
    recorder.start()
    eventually(lambda: store.rows == [0, 1, 2, 4, 5])
    recorder.stop(5)


def test_stopping_records_what_is_there(store: Store) -> None:
    recorder = Recorder(store.record, store.tell)
    recorder.start()
    for line in range(10):
        recorder.put(row(line))
    assert recorder.stop(5) == 0
    assert store.rows == list(range(10))


def test_stopping_gives_up_in_time_when_the_database_stays_away(store: Store) -> None:
    store.away.set()
    recorder = Recorder(store.record, store.tell)
    recorder.start()
    recorder.put(row(1))
    assert recorder.stop(0.3) == 1


def test_a_database_that_goes_away_while_rows_are_stored_singly_loses_none(store: Store) -> None:
    """Only a row that can never be stored is let go; the others wait like any group."""
    store.refused = 3
    record, is_away = store.record, [True]

    def fragile(rows: Sequence[LineResult], closing: Sequence[SliceClaim]) -> GroupReport:
        if [r.line for r in rows] == [4] and is_away:
            is_away.clear()
            raise OperationalError("", None, Exception("server closed the connection unexpectedly"))
        return record([r for r in rows if r.line not in store.rows], closing)  # as storage drops what it has

    recorder = Recorder(fragile, store.tell)
    for line in range(6):
        recorder.put(row(line))
    recorder.start()
    eventually(lambda: store.rows == [0, 1, 2, 4, 5])
    assert recorder.stop(5) == 0


def test_what_came_of_a_group_that_is_stored_row_by_row_is_told_whole(store: Store) -> None:
    """Also the batches that it paused, and the rows that came too late."""
    store.refused = 1
    reports: list[GroupReport] = []

    def record(rows: Sequence[LineResult], closing: Sequence[SliceClaim]) -> GroupReport:
        store.record(rows, closing)
        return GroupReport(len(rows), Counter(duplicate=1), [rows[0].line], [rows[0].line])

    recorder = Recorder(record, lambda group, report: reports.append(report))
    for line in range(3):
        recorder.put(row(line))
    recorder.start()
    eventually(lambda: reports)
    assert recorder.stop(5) == 0
    assert reports == [GroupReport(2, Counter(duplicate=2), [0, 2], [0, 2])]


def test_the_thread_outlives_a_listener_that_fails(store: Store) -> None:
    """A closed loop, a fault in the pump: what comes next is stored all the same."""

    def tell(group: Group, report: GroupReport) -> None:
        store.told.append(group)
        raise RuntimeError("Event loop is closed")

    recorder = Recorder(store.record, tell)
    recorder.start()

    def put_alone(line: int) -> None:
        recorder.put(row(line))
        eventually(lambda: len(store.told) == line + 1)

    for line in range(3):
        put_alone(line)
    assert store.rows == [0, 1, 2]
    assert recorder.stop(5) == 0
