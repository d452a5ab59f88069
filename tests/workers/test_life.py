"""A worker that was killed is known to be dead on its machine, and a living one never is."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from batch.operations.world import World
from batch.storage.claims import claim_slices
from batch.storage.tables import batches, slices
from batch.storage.watch import claimable_lanes
from tests.harness.servers import Child, clean_environment, forget_the_killed, python
from tests.harness.waiting import eventually
from tests.harness.worlds import ingest, jsonl, request_line
from workers.life import Life, find_ended, forget_ended
from workers.sweeps import run_sweep

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sign of life needs Linux' /dev/shm")

HOLDER = """
import sys, time
from workers.life import Life
life = Life(sys.argv[1], "holder")
print("lives", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(world: World, tmp_path: Path) -> Iterator[Child]:
    """A process with the sign of life of `holder`, who holds the lines of a batch, and its job."""
    url = world.settings.resolved_database_url
    batch = ingest(world, jsonl([request_line(f"r{i}") for i in range(3)]))
    with world.db.read() as conn:
        [lane] = claimable_lanes(conn)
    assert claim_slices(world.db, lane, "holder", want_lines=9)
    with world.db.write() as conn:
        conn.execute(sa.update(batches).where(batches.c.id == batch.id).values(job_owner="holder", job_until=1 << 50))
    child = Child(python("-c", HOLDER, url), env=clean_environment(), cwd=tmp_path, log=tmp_path / "log")
    eventually(lambda: "lives" in child.text(), 20)
    yield child
    child.kill()
    forget_the_killed(url)


def held(world: World) -> tuple[str, str | None]:
    query = sa.select(slices.c.state, batches.c.job_owner).join(batches, batches.c.id == slices.c.batch_id)
    with world.db.read() as conn:
        state, job_owner = conn.execute(query).one()
    return state, job_owner


def test_what_a_killed_worker_held_is_free_with_the_next_sweep(world: World, holder: Child) -> None:
    """Long before its leases run out, as after a crash: suspicion grows."""
    assert run_sweep("expire_leases", world, "test").startswith("expired 0")
    holder.kill()
    assert run_sweep("expire_leases", world, "test").startswith("expired 2")
    assert held(world) == ("ready", None)
    with world.db.read() as conn:
        assert conn.execute(sa.select(slices.c.suspicion)).scalar_one() == 1
    assert find_ended(world.settings.resolved_database_url), "a claim of its last moment may still land"
    run_sweep("expire_leases", world, "test")
    assert find_ended(world.settings.resolved_database_url) == []


def test_a_frozen_worker_keeps_what_it_holds(world: World, holder: Child) -> None:
    holder.signal_group(signal.SIGSTOP)
    assert run_sweep("expire_leases", world, "test").startswith("expired 0")
    assert held(world) == ("leased", "holder")


def test_a_worker_without_a_sign_keeps_what_it_holds(world: World, holder: Child) -> None:
    """On another machine, in another container, or its file was removed: only the lease tells."""
    holder.kill()
    [(_, sign)] = find_ended(world.settings.resolved_database_url)
    forget_ended(sign)
    assert run_sweep("expire_leases", world, "test").startswith("expired 0")
    assert held(world) == ("leased", "holder")


def test_workers_of_another_database_are_not_asked_about(world: World) -> None:
    life = Life("sqlite:///other.db", "w")
    assert find_ended("sqlite:///other.db") == find_ended(world.settings.resolved_database_url) == []
    life.end()
    assert not list(Path("/dev/shm").glob("batchmill-*-w"))
