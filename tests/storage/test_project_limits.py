"""What a project may use: providers, priority, enqueued requests and tokens, storage."""

from __future__ import annotations

from typing import Any

import pytest

from batch.domain.errors import Forbidden, TooLarge
from batch.operations.create_batch import create_batch
from batch.operations.finalize import finalize_batch
from batch.operations.ingest import ingest_batch
from batch.operations.keys import set_project_limits
from batch.operations.read_batches import get_batch_errors
from batch.operations.retry_batch import retry_batch
from batch.operations.upload_parts import open_upload
from batch.operations.world import World
from batch.storage.projects import Project
from tests.harness.worlds import CHAT, ingest, jsonl, load, make_world, record, request_line, upload

TWO = {name: {"base_url": "http://127.0.0.1:9/v1", "models": [f"{name}-m"]} for name in ("acme", "other")}


def limited(world: World, **limits: Any) -> Project:
    return set_project_limits(world, "default", **limits)


def refusal(world: World, *lines: Any, project: Project, **options: Any) -> tuple[str, str]:
    """Why the batch failed: code and message of its only error."""
    body = {"input_file_id": upload(world, jsonl(list(lines))), "endpoint": CHAT, "completion_window": "24h"}
    batch = create_batch(world, project, {**body, "options": options})
    assert ingest_batch(world, batch.id, "test") == "failed"
    (error,) = get_batch_errors(world, [batch.id])[batch.id]
    return error.code, error.message


@pytest.fixture
def two(sqlite_url: str, tmp_path: Any) -> Any:
    world = make_world(sqlite_url, tmp_path, providers=TWO)
    yield world
    world.close()


def test_a_provider_that_is_not_allowed_is_refused_when_named(two: World) -> None:
    """At once, when the batch names it; with its place."""
    project = limited(two, allowed_providers=["acme"])
    body = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
    for entry in ("other", "other/other-m"):
        with pytest.raises(Forbidden, match="may not use provider 'other'"):
            create_batch(two, project, {**body, "options": {"providers": [entry]}})


def test_a_model_of_a_provider_that_is_not_allowed_looks_unknown(two: World) -> None:
    """By its id, by its prefix, by the line's own override: nothing of it is ever called."""
    project = limited(two, allowed_providers=["acme"])
    override = {**request_line("a", model="acme-m"), "batchmill": {"provider": "other"}}
    for line in (request_line("a", model="other-m"), request_line("a", model="other/other-m"), override):
        code, message = refusal(two, line, project=project)
        assert code == "model_not_found"
        assert "http" not in message


def test_priority_above_the_maximum_is_refused_also_for_a_retry(two: World) -> None:
    """A parent that was allowed more does not lend it."""
    project = limited(two, max_priority="high")
    body = {"input_file_id": upload(two, jsonl([request_line("a", model="acme-m")])), "endpoint": CHAT,
            "completion_window": "24h", "options": {"priority": "high"}}  # fmt: skip
    batch = create_batch(two, project, body)
    assert ingest_batch(two, batch.id, "test") == "started"
    record(two, load(two, batch), {1: ("a", False)})
    finalize_batch(two, batch.id, "test")
    project = limited(two, max_priority="low")
    for priority in ("high", "normal"):
        with pytest.raises(Forbidden, match="'low' at most"):
            create_batch(two, project, {**body, "options": {"priority": priority}})
    with pytest.raises(Forbidden):
        retry_batch(two, project, batch.public_id)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"enqueued_requests": 3}, "Enqueued request limit reached for project default. Limit: 3 enqueued requests."),
        ({"enqueued_tokens": 50_000}, "Enqueued token limit reached for project default. Limit: 50,000 enqueued"),
    ],
)
def test_enqueued_limits_count_open_batches_and_free_themselves(world: World, limits: Any, words: str) -> None:
    """The second batch is over the limit, with OpenAI's code; after the first has ended it is not."""
    project = limited(world, limits=limits)
    pair = [request_line(name, content="word " * 15_000, max_tokens=10) for name in ("a", "b")]
    first = ingest(world, jsonl(pair))
    assert first.status == "in_progress"
    code, message = refusal(world, *pair, project=project)
    assert code == "token_limit_exceeded" and message.startswith(words)
    record(world, first, {1: ("a", True), 2: ("b", True)})
    assert ingest(world, jsonl(pair)).status == "in_progress"


def test_storage_is_refused_before_parts_are_sent(world: World) -> None:
    """An upload in parts says its size when it is opened."""
    project = limited(world, limits={"storage_bytes": 1_000})
    with pytest.raises(TooLarge, match="storage limit of 1,000 bytes"):
        open_upload(world, project.id, filename="a", purpose="batch", mime_type="x", size_bytes=1_001)
    open_upload(world, project.id, filename="a", purpose="batch", mime_type="x", size_bytes=1_000)
