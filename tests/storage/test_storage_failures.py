"""Disks that fill, servers that restart, locks that others hold: waited out for a bounded time, then said honestly.

Never is a batch shown complete without its files.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from batch.api.errors import respond_to
from batch.domain.errors import Unavailable
from batch.operations import check_ready as readiness
from batch.operations.finalize import finalize_batch
from batch.operations.world import World
from batch.storage.claims import claim_slices
from batch.storage.engine import Database
from batch.storage.results import GroupReport, record_group
from batch.storage.tables import batches, files
from tests.harness.databases import postgres_cluster
from tests.harness.rows import batch_row, make_batch, make_lane, result_of
from tests.harness.waiting import eventually
from tests.harness.worlds import create, ingest, jsonl, load, make_world, record, request_line, upload
from workers.recorder import Recorder


@contextmanager
def full_database(db: Database) -> Iterator[None]:
    """SQLite may not grow by another page: what a full disk answers."""
    sa.event.listen(db.engine, "connect", _stop_growing)
    db.engine.dispose()
    yield
    sa.event.remove(db.engine, "connect", _stop_growing)
    db.engine.dispose()


def _stop_growing(connection: object, _record: object) -> None:
    pages = connection.execute("PRAGMA page_count").fetchone()[0]  # type: ignore[attr-defined]
    connection.execute(f"PRAGMA max_page_count={pages}")  # type: ignore[attr-defined]


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """This process may write no file beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_under_sqlite_is_unavailable_and_nothing_is_half_done(sqlite_world: World) -> None:
    """A few tries, then a 503; with room again the same request is served."""
    world = sqlite_world
    file_id = upload(world, jsonl([request_line("a")]))
    with full_database(world.db):
        with pytest.raises(Unavailable) as caught:
            for _ in range(500):
                create(world, file_id, metadata={"padding": "x" * 500})
        assert respond_to(caught.value).status_code == 503
    with world.db.read() as conn:
        assert conn.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    assert create(world, file_id).status == "validating"


def test_results_wait_for_room_on_a_full_disk(sqlite_db: Database) -> None:
    """The recorder keeps them and tries again: none is dropped as unstorable."""
    lane = make_lane(sqlite_db)
    batch = make_batch(sqlite_db, [lane], 20, per_slice=20)
    [claim] = claim_slices(sqlite_db, lane, "me", want_lines=20)
    told: list[GroupReport] = []
    recorder = Recorder(lambda rows, closing: record_group(sqlite_db, rows, "me", closing), lambda _, r: told.append(r))
    with full_database(sqlite_db):
        recorder.start()
        for line in claim.lines:
            row = result_of(claim, line)
            row.output = b'{"custom_id":"c%d","text":"%s"}' % (line, b"x" * 60_000)
            recorder.put(row, claim if line == claim.lines[-1] else None)
        eventually(lambda: recorder.waiting_rows == 20 and not told, 5)
        threading.Event().wait(0.3)
        assert batch_row(sqlite_db, batch).completed == 0
    eventually(lambda: batch_row(sqlite_db, batch).completed == 20, 15, what="all of them, once there is room")
    assert recorder.stop(2) == 0


def test_a_file_store_without_room_takes_no_upload(world: World) -> None:
    """No row without its bytes, and no half file."""
    with no_file_over(1 << 20), pytest.raises(Unavailable):
        upload(world, b'{"a":"' + b"x" * (20 << 20) + b'"}\n')
    assert list(world.blobs.list()) == []
    with world.db.read() as conn:
        assert conn.execute(sa.select(files.c.id)).first() is None


def test_a_file_store_without_room_keeps_a_batch_finalizing(postgres_url: str, tmp_path: Path) -> None:
    """Never complete without its files; with room again it completes."""
    world = make_world(postgres_url, tmp_path / "data")
    batch = ingest(world, jsonl([request_line(f"r{i}") for i in range(40)]))
    rows = {i + 1: (f"r{i}" + "x" * 60_000, True) for i in range(40)}
    record(world, batch, rows)
    with no_file_over(1 << 20), pytest.raises(Unavailable):
        finalize_batch(world, batch.id, "one")
    assert (load(world, batch).status, load(world, batch).output_file_id) == ("finalizing", None)
    with world.db.write() as conn:
        conn.execute(sa.update(batches).values(job_until=1))
    assert finalize_batch(world, batch.id, "two") == "completed"
    world.close()


def test_a_disk_that_is_nearly_full_makes_the_service_unready(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before writes fail; the answer says what is missing."""
    assert readiness.check_ready(sqlite_world)["disk"] == "ok"
    monkeypatch.setattr(readiness, "MIN_FREE_BYTES", 1 << 60)
    assert readiness.check_ready(sqlite_world)["disk"] == "no space is left"


def test_a_restart_of_postgresql_in_the_middle_is_waited_out(postgres_url: str) -> None:
    """Open connections die under their statements; the same work is done again on new ones."""
    db = Database(postgres_url)
    lane = make_lane(db)
    batch = make_batch(db, [lane], 30, per_slice=30)
    [claim] = claim_slices(db, lane, "me", want_lines=30)
    recorder = Recorder(lambda rows, closing: record_group(db, rows, "me", closing), lambda *_: None)
    recorder.start()
    restart = threading.Thread(target=postgres_cluster().restart, args=("immediate",))
    restart.start()
    for line in claim.lines:
        recorder.put(result_of(claim, line), claim if line == 30 else None)
    restart.join()
    eventually(lambda: db.retrying(lambda: batch_row(db, batch).completed == 30, tries=8), 20)
    assert recorder.stop(2) == 0
    db.close()


def test_a_connection_limit_is_unavailable_and_passes(postgres_url: str) -> None:
    """53300 is waited for a moment, then said; the next caller is served when there is room."""
    admin = Database(postgres_url)
    with admin.write() as conn:
        conn.execute(sa.text("DROP ROLE IF EXISTS narrow"))
        conn.execute(sa.text("CREATE ROLE narrow LOGIN CONNECTION LIMIT 1"))
    narrow = str(admin.url.set(username="narrow"))
    first, second = Database(narrow), Database(narrow)

    def ask() -> int:
        with second.read() as conn:
            return second.now(conn)

    with first.read() as conn:
        first.now(conn)
        with pytest.raises(Unavailable):
            second.retrying(ask, tries=2)
    first.close()
    eventually(lambda: second.retrying(ask) > 0, 5)
    second.close()
    with admin.write() as conn:
        conn.execute(sa.text("DROP ROLE narrow"))
    admin.close()


def test_a_deadlock_between_two_is_done_again_by_the_one_who_lost(postgres_url: str) -> None:
    """40P01 passes by itself."""
    db = Database(postgres_url)
    ids = [make_batch(db, [make_lane(db)], 1) for _ in range(2)]
    met, runs = threading.Barrier(2, timeout=10), []

    def both(order: list[int]) -> None:
        def work() -> None:
            runs.append(order)
            with db.write() as conn:
                conn.execute(sa.update(batches).where(batches.c.id == order[0]).values(model="m"))
                if runs.count(order) == 1:
                    met.wait()
                conn.execute(sa.update(batches).where(batches.c.id == order[1]).values(model="m"))

        db.retrying(work)

    threads = [threading.Thread(target=both, args=(order,)) for order in (ids, ids[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(runs) == 3, "one of them began again"
    db.close()


def test_a_serialization_failure_is_done_again(postgres_url: str) -> None:
    """40001, as a stricter server or a failover may answer."""
    db, other = Database(postgres_url), Database(postgres_url)
    batch, tries = make_batch(db, [make_lane(db)], 1), []

    def work() -> None:
        with db.write() as conn:
            conn.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            conn.execute(sa.select(batches.c.model)).first()
            tries.append(1)
            if len(tries) == 1:
                with other.write() as rival:
                    rival.execute(sa.update(batches).values(model="theirs"))
            conn.execute(sa.update(batches).values(model="mine"))

    db.retrying(work)
    assert (len(tries), batch_row(db, batch).model) == (2, "mine")
    db.close()
    other.close()


def test_reading_never_waits_for_a_writer_in_sqlite(sqlite_url: str) -> None:
    """Not even on a connection that must be opened first."""
    foreign, db = Database(sqlite_url), Database(sqlite_url)
    with foreign.write():
        reading = threading.Thread(target=lambda: batch_count(db), daemon=True)
        reading.start()
        reading.join(5)
        assert not reading.is_alive()
    db.close()
    foreign.close()


def batch_count(db: Database) -> int:
    with db.read() as conn:
        return int(conn.execute(sa.select(sa.func.count()).select_from(batches)).scalar_one())


def test_a_foreign_writer_in_sqlite_is_waited_for_and_then_reported(sqlite_url: str) -> None:
    """Somebody's open transaction: busy for a while is a wait, busy for longer is Unavailable."""
    db, foreign = Database(sqlite_url), Database(sqlite_url)
    sa.event.listen(db.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=50"))

    def work() -> None:
        with db.write() as conn:
            conn.execute(sa.text("UPDATE lanes SET queue = 'calls'"))

    with foreign.write():
        with pytest.raises(Unavailable):
            db.retrying(work, tries=2)
        waiting = threading.Thread(target=lambda: db.retrying(work, tries=50))
        waiting.start()
    waiting.join(10)
    assert not waiting.is_alive()
    db.close()
    foreign.close()
