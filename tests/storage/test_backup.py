"""A backup as docs/operations.md tells it: the database first, the files after it; restored elsewhere and checked."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from batch.operations.doctor import examine
from batch.operations.finalize import finalize_batch
from batch.operations.world import World
from batch.storage.claims import claim_slices, load_open_lines
from batch.storage.rescues import expire_leases
from tests.harness.databases import fresh_postgres
from tests.harness.rows import lapse_leases
from tests.harness.worlds import ingest, jsonl, load, make_world, read_lines, record, request_line

LINES = [request_line(f"r{number}", content="x" * 70_000 if number == 3 else "short") for number in range(20)]


@pytest.fixture
def elsewhere(world: World) -> Iterator[str]:
    """The URL of an empty database of the same kind."""
    if world.db.is_sqlite:
        yield f"sqlite:///{world.settings.resolved_data_dir.parent / 'restored' / 'batchmill.db'}"
        return
    with fresh_postgres() as url:
        yield url


def test_a_restored_backup_is_whole_and_goes_on(world: World, elsewhere: str, tmp_path: Path) -> None:
    """One batch had ended, one was running with a slice held. What happened after the backup is forgotten."""
    done = ingest(world, jsonl(LINES))
    record(world, done, {number + 1: (f"r{number}", True) for number in range(20)})
    finalize_batch(world, done.id, "test")
    running = ingest(world, jsonl(LINES))
    record(world, running, {1: ("r0", True), 2: ("r1", False)})
    lane = running.routes[0][0]
    assert claim_slices(world.db, lane, "worker-1", want_lines=5)
    target = tmp_path / "restored"
    target.mkdir()

    back_up_database(world, elsewhere)
    shutil.copytree(world.blobs.root or tmp_path, target / "files")
    ingest(world, jsonl(LINES))

    restored = make_world(elsewhere, target)
    assert [finding for finding in examine(restored) if finding.verdict == "wrong"] == []
    assert len(read_lines(restored, load(restored, done), "output") or ()) == 20
    lapse_leases(restored.db)
    expire_leases(restored.db)
    assert open_lines(restored, lane) == list(range(3, 21))
    record(restored, running, {number + 1: (f"r{number}", True) for number in range(20)})
    finalize_batch(restored, running.id, "test")
    ended = load(restored, running)
    assert (ended.status, ended.completed, ended.failed) == ("completed", 19, 1)
    assert [finding for finding in examine(restored) if finding.verdict == "wrong"] == []
    restored.close()


def open_lines(world: World, lane: int) -> list[int]:
    """What a new worker would call."""
    claimed = claim_slices(world.db, lane, "worker-2", want_lines=100)
    with world.db.read() as conn:
        return sorted(item.line for claim in claimed for item in load_open_lines(conn, claim))


def back_up_database(world: World, target: str) -> None:
    """SQLite's own online backup; pg_dump into psql, both of which run beside writers."""
    if world.db.is_sqlite:
        place = Path(str(make_url(target).database))
        with (
            closing(sqlite3.connect(str(world.db.url.database))) as source,
            closing(sqlite3.connect(place)) as copy,
        ):
            source.backup(copy)
        return
    if shutil.which("pg_dump") is None:
        pytest.skip("pg_dump is not on this machine")
    addresses = [make_url(url).render_as_string(hide_password=False) for url in (str(world.db.url), target)]
    dumped = subprocess.run(["pg_dump", "--no-owner", addresses[0]], capture_output=True, check=True, timeout=60)
    subprocess.run(
        ["psql", "-q", "-v", "ON_ERROR_STOP=1", addresses[1]], input=dumped.stdout, capture_output=True, check=True,
        timeout=60,
    )  # fmt: skip


