"""Whole worker processes: a batch from file to files, and what a signal in the middle does to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from batch.operations.cancel_batch import cancel_batch
from batch.operations.pause_batch import pause_batch, resume_batch
from batch.simulator import Fault, Latency, Simulator, start_simulator
from batch.storage.lanes import get_lanes, resume_lane
from batch.storage.tables import slices
from tests.harness.crew import Crew, running_crew
from tests.harness.waiting import eventually
from tests.harness.worlds import default_project

pytestmark = pytest.mark.slow


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    running = start_simulator()
    yield running
    running.stop()


@pytest.fixture
def crew(database_url: str, valkey_url: str, simulator: Simulator) -> Iterator[Crew]:
    """On SQLite and on PostgreSQL."""
    with running_crew(database_url, valkey_url, simulator) as made:
        yield made


@pytest.fixture
def sqlite_crew(sqlite_url: str, valkey_url: str, simulator: Simulator) -> Iterator[Crew]:
    with running_crew(sqlite_url, valkey_url, simulator) as made:
        yield made


def slow(crew: Crew, low_s: float, high_s: float) -> None:
    crew.simulator.reconfigure(latency=Latency("uniform", low_s, high_s))


def test_a_batch_runs_from_file_to_files(crew: Crew) -> None:
    """Every line once, in input order, answered by one call each."""
    crew.hire("w")
    batch = crew.submit(1_200)
    ended = crew.wait_ended(batch)
    assert (ended.status, ended.completed, ended.failed) == ("completed", 1_200, 0)
    assert list(crew.lines(batch)) == [f"c{i}" for i in range(1_200)]
    assert len(crew.simulator.requests) == 1_200


def test_killed_in_the_middle_every_line_still_comes_out_once(crew: Crew) -> None:
    """kill −9 of one of two workers: its leases run out, the other goes on where nothing was recorded."""
    slow(crew, 0.1, 0.3)
    first = crew.hire("w1", lease_s=4)
    crew.hire("w2", lease_s=4)
    batch = crew.submit(1_500)
    crew.wait_done(batch, 300)
    first.kill()
    ended = crew.wait_ended(batch)
    assert (ended.status, ended.completed) == ("completed", 1_500)
    assert len(crew.lines(batch)) == 1_500


def test_sigterm_records_what_is_in_flight_and_gives_back_the_rest(crew: Crew) -> None:
    """No call is made twice, no suspicion grows, and nothing waits for a lease to run out."""
    slow(crew, 0.5, 1.0)
    first = crew.hire("w1")
    batch = crew.submit(600)
    crew.wait_done(batch, 20)
    assert first.terminate(20) == 0
    with crew.world.db.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).where(slices.c.state == "leased")).scalar_one() == 0
        assert conn.execute(sa.select(sa.func.max(slices.c.suspicion))).scalar_one() == 0
    slow(crew, 0.0, 0.01)
    crew.hire("w2")
    assert crew.wait_ended(batch).completed == 600
    assert len(crew.simulator.requests) == 600


def test_cancel_stops_unsent_lines_and_keeps_what_lands(crew: Crew) -> None:
    slow(crew, 0.5, 1.0)
    crew.hire("w")
    batch = crew.submit(2_000)
    crew.wait_done(batch, 10)
    cancel_batch(crew.world, default_project(crew.world).id, batch.public_id)
    ended = crew.wait_ended(batch)
    assert ended.status == "cancelled" and 10 <= ended.completed < 2_000
    lines = crew.lines(batch)
    assert len(lines) == 2_000
    cancelled = [line for line in lines.values() if (line["error"] or {}).get("code") == "batch_cancelled"]
    assert len(cancelled) == 2_000 - ended.completed
    assert len(crew.simulator.requests) == ended.completed  # what was sent was paid, and is kept


def test_a_paused_batch_rests_within_seconds_and_goes_on_when_resumed(sqlite_crew: Crew) -> None:
    crew = sqlite_crew
    slow(crew, 0.2, 0.4)
    crew.hire("w")
    batch = crew.submit(600)
    crew.wait_done(batch, 10)
    project_id = default_project(crew.world).id
    pause_batch(crew.world, project_id, batch.public_id)

    def nothing_leased() -> bool:
        with crew.world.db.read() as conn:
            return conn.execute(sa.select(sa.func.count()).where(slices.c.state == "leased")).scalar_one() == 0

    eventually(nothing_leased, 10, what=f"slices are given back\n{crew.logs()}")
    done = crew.load(batch).completed
    assert done < 600
    resume_batch(crew.world, project_id, batch.public_id)
    slow(crew, 0.0, 0.01)
    assert crew.wait_ended(batch).completed == 600
    assert len(crew.simulator.requests) == 600


def test_passing_faults_cost_no_line(sqlite_crew: Crew) -> None:
    """Errors of all passing kinds on a fifth of the calls: every line completes."""
    crew = sqlite_crew
    crew.simulator.reconfigure(
        faults=(
            Fault("status", rate=0.04, status=500), Fault("reset", rate=0.04), Fault("reset_mid_body", rate=0.04),
            Fault("rate_limit", rate=0.04, retry_after_s=0.2), Fault("truncated_json", rate=0.02, first=1),
        )
    )  # fmt: skip
    crew.hire("w")
    batch = crew.submit(400)
    ended = crew.wait_ended(batch, 90)
    assert (ended.completed, ended.failed) == (400, 0)
    assert len(crew.lines(batch)) == 400


def test_a_refused_request_ends_in_the_error_file_with_the_providers_answer(sqlite_crew: Crew) -> None:
    crew = sqlite_crew
    crew.simulator.reconfigure(faults=(Fault("context_length", contains="say 7 "),))
    crew.hire("w")
    batch = crew.submit(20)
    ended = crew.wait_ended(batch)
    assert (ended.completed, ended.failed) == (19, 1)
    line = crew.lines(batch)["c7"]
    assert line["error"] is None and line["response"]["status_code"] == 400
    assert line["response"]["body"]["error"]["message"]


def test_a_wrong_key_pauses_the_provider_and_fails_no_line(sqlite_url: str, valkey_url: str) -> None:
    """401 is not the line's fault: the reason stands on the lane, and the batch goes on when it is lifted."""
    with (
        start_simulator(invalid_keys=("wrong-key",)) as simulator,
        running_crew(sqlite_url, valkey_url, simulator, 'api_key_env = "SIM_KEY"') as crew,
    ):
        crew.env["SIM_KEY"] = "wrong-key"
        crew.hire("w")
        batch = crew.submit(50)

        def pause_code() -> str | None:
            with crew.world.db.read() as conn:
                return next((lane.pause_code for lane in get_lanes(conn)), None)

        assert eventually(pause_code, 20, what=crew.logs()) == "bad_key"
        assert (crew.load(batch).completed, crew.load(batch).failed) == (0, 0)
        assert len(simulator.requests) <= 50
        simulator.reconfigure(invalid_keys=())
        with crew.world.db.write() as conn:
            resume_lane(conn, [1])
        assert crew.wait_ended(batch).completed == 50


def test_bodies_over_64_kb_are_read_from_the_file(sqlite_crew: Crew) -> None:
    crew = sqlite_crew
    crew.hire("w")
    batch = crew.submit(6, content="x" * 80_000)
    assert crew.wait_ended(batch).completed == 6
    assert len(crew.lines(batch)) == 6


def test_a_plain_worker_serves_calls_and_jobs(sqlite_crew: Crew) -> None:
    """`celery -A workers.app worker` alone: its jobs run in a child that goes with it."""
    crew = sqlite_crew
    crew.children.pop("jobs").kill()
    plain = crew.hire("plain", None)
    batch = crew.submit(50)
    assert crew.wait_ended(batch).completed == 50
    assert plain.terminate(30) == 0


def test_a_pool_that_cannot_serve_calls_is_refused_with_the_mend(sqlite_crew: Crew) -> None:
    solo = sqlite_crew.hire("solo", "calls", "-P", "solo")
    eventually(lambda: not solo.is_running(), 30)
    assert solo.process.returncode != 0
    assert "--pool threads" in solo.text()
