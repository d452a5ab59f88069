"""A commit succeeds and its answer is lost: the connection broke just then, and the operation does it again.

Each test is named after what happens once all the same. A restart of PostgreSQL makes this real; here it is staged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from batch.operations.cancel_batch import cancel_batch
from batch.operations.create_batch import create_batch
from batch.operations.finalize import finalize_batch
from batch.operations.ingest import ingest_batch
from batch.operations.pause_batch import pause_batch, resume_batch
from batch.operations.read_files import list_files
from batch.operations.retry_batch import read_family, retry_batch
from batch.operations.upload import FileUpload
from batch.operations.upload_parts import begin_part, complete_upload, open_upload
from batch.operations.world import World
from batch.storage import projects
from batch.storage.batches import BatchRow
from batch.storage.projects import Project
from batch.storage.tables import batches, files, requests, slices
from tests.harness.worlds import (
    CHAT,
    create,
    default_project,
    ingest,
    jsonl,
    load,
    read_lines,
    record,
    request_line,
)

INPUT = jsonl([request_line("a"), request_line("b")])


@pytest.fixture
def losing(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The answer of every first commit is lost: each operation does its work twice."""
    default_project(world)
    lose_answers(world, monkeypatch, lambda number: number % 2 == 1)
    return world


def lose_answers(world: World, monkeypatch: pytest.MonkeyPatch, is_lost: Callable[[int], bool]) -> None:
    """Of the commits from now on, counted from 1."""
    write, numbers = world.db.write, itertools.count(1)

    @contextmanager
    def lossy() -> Iterator[sa.Connection]:
        with write() as conn:
            yield conn
        if is_lost(next(numbers)):
            raise OperationalError("COMMIT", {}, Exception("server closed"), connection_invalidated=True)

    monkeypatch.setattr(world.db, "write", lossy)


def project_of(world: World) -> Project:
    with world.db.read() as conn:
        return projects.load_project(conn, 1)


def send(world: World) -> str:
    with FileUpload(world, 1) as writer:
        writer.append(INPUT)
        return writer.finish(purpose="batch", filename="in.jsonl").public_id


def post(world: World, **arguments: Any) -> BatchRow:
    body = {"input_file_id": send(world), "endpoint": CHAT, "completion_window": "24h"}
    return create_batch(world, project_of(world), body, **arguments)


def count(world: World, table: sa.Table) -> int:
    with world.db.read() as conn:
        return conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def test_an_upload_makes_one_file(losing: World) -> None:
    """Two rows for the same bytes would take them from each other when one is deleted."""
    file_id = send(losing)
    assert [file.public_id for file in list_files(losing, 1)[0]] == [file_id]


@pytest.mark.parametrize("key", [None, "k"])
def test_a_create_makes_one_batch(losing: World, key: str | None) -> None:
    """With and without an idempotency key; its bell is rung."""
    batch = post(losing, idempotency_key=key)
    assert count(losing, batches) == 1
    assert ("ingest", batch.id) in losing.bells.rung  # type: ignore[attr-defined]


def test_a_completed_upload_keeps_its_file(losing: World) -> None:
    """Its second completion is its first one, not somebody else's."""
    upload = open_upload(losing, 1, filename="x.jsonl", purpose="batch", mime_type="t", size_bytes=len(INPUT))
    with begin_part(losing, 1, upload.public_id) as part:
        part.append(INPUT)
        part_id = part.finish().public_id
    done, file = complete_upload(losing, 1, upload.public_id, [part_id])
    assert (done.status, done.file) == ("completed", file.public_id)
    assert [row.public_id for row in list_files(losing, 1)[0]] == [file.public_id]


def test_a_retry_makes_one_child(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's key finds it again."""
    batch = ingest(world, INPUT)
    cancel_batch(world, batch.project_id, batch.public_id)
    assert finalize_batch(world, batch.id, "one") == "cancelled"
    lose_answers(world, monkeypatch, lambda number: number % 2 == 1)
    child = retry_batch(world, project_of(world), batch.public_id)
    family = read_family(world, batch.project_id, batch.public_id)
    assert [member.public_id for member in family] == [batch.public_id, child.public_id]


def test_an_ingest_starts_its_batch_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last transaction, done again, finds the batch running and leaves it so."""
    batch = create(world, INPUT)
    lose_answers(world, monkeypatch, lambda number: number == 4)  # after the lease, the lane and the chunk
    assert ingest_batch(world, batch.id, "one") == "lost"
    assert (load(world, batch).status, count(world, requests), count(world, slices)) == ("in_progress", 2, 1)


def test_a_finalize_publishes_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the commit whose answer was lost are the batch's, whole and named."""
    batch = ingest(world, INPUT)
    record(world, batch, {1: ("a", True), 2: ("b", True)})
    lose_answers(world, monkeypatch, lambda number: number == 2)
    assert finalize_batch(world, batch.id, "one") == "lost"
    ended = load(world, batch)
    assert (ended.status, count(world, files)) == ("completed", 2)
    assert [line["custom_id"] for line in read_lines(world, ended, "output") or ()] == ["a", "b"]


def test_pause_resume_and_cancel_hold(losing: World) -> None:
    """What was done is what is answered."""
    batch = post(losing)
    assert pause_batch(losing, 1, batch.public_id).paused
    assert not resume_batch(losing, 1, batch.public_id).paused
    assert cancel_batch(losing, 1, batch.public_id).status == "cancelling"
