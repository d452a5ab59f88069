"""The machines of batches and slices, walked at random on both databases, with the laws checked at every step.

Rules are what users, workers, zombies and sweeps may do at any time. The laws: each line stands in one place or has
one result; counts are what rows say; the cursor has no gap; after the seal nothing changes; only rows of
batch/domain/states.py are walked; an epoch never falls, and who lost a lease can do nothing with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from batch.domain.states import BATCH_TRANSITIONS, SLICE_TRANSITIONS
from batch.storage import batches as batch_rows
from batch.storage import jobs
from batch.storage.claims import SliceClaim, claim_slices
from batch.storage.engine import Database, db_now
from batch.storage.jobs import Job
from batch.storage.leases import Release, give_back_if_held, renew_if_held
from batch.storage.packing import unpack_lines
from batch.storage.rescues import (
    close_resolved,
    end_leftovers,
    expire_leases,
    hop_slices,
    wake_slices,
)
from batch.storage.results import record_group
from batch.storage.tables import batches, results, slices
from tests.harness.rows import make_batch, make_lane, result_of

LINES, PER_SLICE = 7, 3
OWNERS = ("one", "one", "two")
PICK = st.integers(0, 63)  # of whatever there is then: what is drawn must not hang on what a database did
WAIT_S = 3600.0  # over when a rule says so, never by itself
WALKS = {"batch": {(row.source, row.target) for row in BATCH_TRANSITIONS},
         "slice": {(row.source, row.target) for row in SLICE_TRANSITIONS}}  # fmt: skip


class Machine(RuleBasedStateMachine):
    """One batch in two lanes; `held` are claims that somebody believes to hold, alive or zombie."""

    db: Database

    def __init__(self) -> None:
        super().__init__()
        with self.db.write() as conn:
            for table in ("slices", "batch_lanes", "results", "requests", "line_progress", "batches", "lanes"):
                conn.execute(sa.text(f"DELETE FROM {table}"))
        self.lanes = [make_lane(self.db, "sim"), make_lane(self.db, "other")]
        self.batch = make_batch(self.db, self.lanes, LINES, per_slice=PER_SLICE)
        self.held: list[tuple[str, SliceClaim]] = []
        self.answered: dict[int, bool] = {}  # the first result that was taken, by line
        self.claim("one", LINES)
        self.at_seal: tuple[int, ...] | None = None
        self.was = self._states(self._batch(), self._slices())

    # workers

    @rule(owner=st.sampled_from(OWNERS), want=st.integers(1, LINES))
    def claim(self, owner: str, want: int) -> None:
        taken = [(owner, one) for lane in self.lanes for one in claim_slices(self.db, lane, owner, want_lines=want)]
        if taken:
            assert self._batch().status == "in_progress" and self._batch().sealed_at is None
        self.held += taken

    @rule(pick=PICK, lines=st.lists(st.tuples(PICK, st.booleans()), min_size=1, max_size=6), closes=st.booleans())
    def record(self, pick: int, lines: list[tuple[int, bool]], closes: bool) -> None:
        """Any believed holder records any of its lines; some fail; a group may close the slice."""
        if not self.held:
            return
        owner, one = self._believed(pick)
        told = [(one.lines[which % len(one.lines)], ok) for which, ok in lines]
        was_sealed, is_held = self._batch().sealed_at is not None, self._is_held(owner, one)
        rows = [result_of(one, line, ok=ok) for line, ok in told]
        report = record_group(self.db, rows, owner, [one] if closes else [])
        taken = 0
        for line, ok in told:
            if line not in self.answered and not was_sealed and (ok or is_held):
                self.answered[line] = ok
                taken += 1
        assert report.recorded == taken

    @rule(pick=PICK)
    def work_through(self, pick: int) -> None:
        """The plain way: one claim, every line answered, the slice closed in the same group."""
        if self.held:
            owner, one = self._believed(pick)
            was_sealed = self._batch().sealed_at is not None
            report = record_group(self.db, [result_of(one, line, ok=True) for line in one.lines], owner, [one])
            fresh = [line for line in one.lines if line not in self.answered and not was_sealed]
            self.answered |= dict.fromkeys(fresh, True)
            assert report.recorded == len(fresh)

    @rule(pick=PICK, kept=st.sets(st.integers(0, PER_SLICE - 1), max_size=PER_SLICE - 1), waits=st.booleans())
    def give_back(self, pick: int, kept: set[int], waits: bool) -> None:
        if not self.held:
            return
        owner, one = self._believed(pick)
        keep = [line for index, line in enumerate(one.lines) if index in kept and index]
        given = [line for line in one.lines if line not in keep]
        released = [Release(line, {"spent": 1}, WAIT_S if waits else 0.0, bool(line % 2)) for line in given]
        was_held = self._is_held(owner, one)
        assert give_back_if_held(self.db, owner, one, released, keep=keep) == was_held
        if was_held:
            self.held.remove((owner, one))
            if keep:
                one.lines = keep
                self.held.append((owner, one))

    @rule(pick=PICK)
    def renew(self, pick: int) -> None:
        if not self.held:
            return
        owner, one = self._believed(pick)
        was_held = self._is_held(owner, one)
        assert (renew_if_held(self.db, owner, {one.slice_id: one.epoch}) == {one.slice_id}) == was_held

    # time, and the sweeps

    @rule(found=st.booleans())
    def let_leases_lapse(self, found: bool) -> None:
        """Every holder is a zombie now, and the sweep has seen it or not yet."""
        with self.db.write() as conn:
            conn.execute(sa.update(slices).where(slices.c.state == "leased").values(lease_until=db_now() - 1))
        if found:
            expire_leases(self.db)

    @rule()
    def let_waits_pass(self) -> None:
        with self.db.write() as conn:
            conn.execute(sa.update(slices).where(slices.c.not_before.is_not(None)).values(not_before=db_now() - 1))

    @rule(which=st.sampled_from([expire_leases, wake_slices, close_resolved, end_leftovers]))
    def sweep(self, which: Any) -> None:
        which(self.db)

    @rule(paused=st.booleans())
    def hop(self, paused: bool) -> None:
        until = "9999999999999" if paused else "NULL"
        with self.db.write() as conn:
            conn.execute(sa.text(f"UPDATE lanes SET paused_until = {until} WHERE id = {self.lanes[0]}"))
        hop_slices(self.db, self.lanes[0])

    # users

    @rule()
    def pause_for_a_while(self) -> None:
        with self.db.write() as conn:
            batch_rows.pause_if_open(conn, self.batch, "person")
        assert not any(claim_slices(self.db, lane, "one", want_lines=LINES) for lane in self.lanes)
        with self.db.write() as conn:
            batch_rows.resume_if_open(conn, self.batch, budget_usd=None, max_failure_share=None)

    @rule(cancelled=st.booleans(), grace_s=st.sampled_from([None, 0.0, 60.0]))
    def end(self, cancelled: bool, grace_s: float | None) -> None:
        """Cancelled, or out of time; sealed at once, when it is quiet, or later; not before some work is done."""
        if len(self.answered) < 4:
            return
        with self.db.write() as conn:
            if cancelled:
                batch_rows.cancel_if_open(conn, self.batch)
            else:
                conn.execute(sa.update(batches).values(expires_at=db_now() - 1))
            if grace_s is not None:
                batch_rows.seal_if_quiet(conn, self.batch, grace_s)

    @rule()
    def publish(self) -> None:
        if self._batch().sealed_at is None:
            return
        with self.db.write() as conn:
            epoch = jobs.take_job_if_free(conn, self.batch, Job.FINALIZE, "jobs")
            if epoch is not None:
                source = self._batch(conn).status
                assert jobs.publish_if_held(conn, self.batch, epoch - 1, source=source, output_file_id=None,
                                            error_file_id=None) is None  # fmt: skip
                assert jobs.publish_if_held(conn, self.batch, epoch, source=source, output_file_id=None,
                                            error_file_id=None) == jobs.PUBLISHED_AS[source][0]  # fmt: skip

    # the laws

    @invariant()
    def the_laws_hold(self) -> None:
        batch, rows, cut = self._batch(), self._results(), self._slices()
        self._counts_are_what_rows_say(batch, rows)
        self._each_open_line_stands_in_one_place(batch, cut)
        self._nothing_changes_after_the_seal(batch, rows)
        self._only_known_transitions_are_walked(batch, cut)

    def _counts_are_what_rows_say(self, batch: Any, rows: Any) -> None:
        assert {row.line: row.ok for row in rows} == self.answered
        assert (batch.completed, batch.failed) == (sum(r.ok for r in rows), sum(not r.ok for r in rows))
        assert sorted(row.seq for row in rows) == list(range(1, batch.last_seq + 1))

    def _each_open_line_stands_in_one_place(self, batch: Any, cut: Any) -> None:
        if batch.sealed_at is not None:
            return
        standing = [n for row in cut if row.state in ("ready", "leased") for n in unpack_lines(row.lines)]
        still_open = [line for line in standing if line not in self.answered]
        assert sorted(still_open) == [n for n in range(1, LINES + 1) if n not in self.answered]

    def _nothing_changes_after_the_seal(self, batch: Any, rows: Any) -> None:
        if batch.sealed_at is None:
            return
        seen = (batch.completed, batch.failed, batch.last_seq, len(rows))
        self.at_seal = self.at_seal or seen
        assert seen == self.at_seal

    def _only_known_transitions_are_walked(self, batch: Any, cut: Any) -> None:
        now = self._states(batch, cut)
        for key, state in now.items():
            before, kind = self.was.get(key, state), key[0]
            if before != state:
                assert (before, state) in WALKS[kind], f"{key} went from {before} to {state}"
        self.was = now

    # reading

    def _believed(self, pick: int) -> tuple[str, SliceClaim]:
        return self.held[pick % len(self.held)]

    def _states(self, batch: Any, cut: Any) -> dict[tuple[str, int], str]:
        return {("batch", 0): batch.status} | {("slice", row.id): row.state for row in cut}

    def _batch(self, conn: sa.Connection | None = None) -> Any:
        query = sa.select(batches).where(batches.c.id == self.batch)
        if conn is not None:
            return conn.execute(query).one()
        with self.db.read() as own:
            return own.execute(query).one()

    def _results(self) -> Any:
        with self.db.read() as conn:
            return conn.execute(sa.select(results).where(results.c.batch_id == self.batch)).fetchall()

    def _slices(self) -> Any:
        with self.db.read() as conn:
            return conn.execute(sa.select(slices).where(slices.c.batch_id == self.batch)).fetchall()

    def _is_held(self, owner: str, one: SliceClaim) -> bool:
        [row] = [row for row in self._slices() if row.id == one.slice_id]
        assert row.epoch >= one.epoch, "an epoch never falls"
        return row.state == "leased" and (row.owner, row.epoch) == (owner, one.epoch)


@pytest.fixture
def walked(database_url: str) -> Iterator[type[Machine]]:
    """The machine on one database, open for all its walks."""
    database = Database(database_url)
    yield type("Walked", (Machine,), {"db": database})
    database.close()


def test_batches_and_slices_keep_their_laws_on_any_walk(walked: type[Machine]) -> None:
    """Conservation, counts, seal, fence, first result wins: whatever happens in whatever order."""
    run_state_machine_as_test(
        walked,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
