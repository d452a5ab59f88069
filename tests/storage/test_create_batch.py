"""Creating batches: what is refused at once, what is the same batch, what waits for ingest."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from batch.domain.errors import Conflict, Forbidden, InvalidRequest
from batch.operations.create_batch import create_batch
from batch.operations.keys import set_project_limits
from batch.operations.world import World
from tests.harness.worlds import CHAT, create, default_project, jsonl, request_line, upload

INPUT = jsonl([request_line("a")])


def test_a_new_batch_waits_for_ingest_and_has_its_deadline_already(world: World) -> None:
    """200 `validating` with expires_at, and the bell rung after the commit."""
    batch = create(world, INPUT, completion_window="90m", metadata={"job": "x"})
    assert (batch.status, batch.total, batch.metadata) == ("validating", 0, {"job": "x"})
    assert batch.expires_at == batch.created_at + 90 * 60 * 1000
    assert world.bells.rung == [("ingest", batch.id)]  # type: ignore[attr-defined]


def test_a_null_window_means_no_deadline(world: World) -> None:
    """`batchmill run` has none unless it is given one."""
    assert create(world, INPUT, completion_window=None).expires_at is None


def test_an_unknown_input_file_is_no_synchronous_error(world: World) -> None:
    """Clients expect 200 and a failed batch later."""
    batch = create(world, "file-none")
    assert (batch.status, batch.input_file_id) == ("validating", None)


@pytest.mark.parametrize(
    ("fields", "param", "code", "part"),
    [
        ({"endpoint": "/v1/x"}, "endpoint", "invalid_value", "Supported values are: '/v1/chat/completions'"),
        ({"completion_window": "48"}, "completion_window", "invalid_value", "completion_window"),
        ({"completion_window": ""}, "completion_window", "invalid_value", "completion_window"),
        ({"metadata": {"tags": ["a"]}}, "metadata.tags", "invalid_type", "expected a string, but got an array"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "object_above_max_properties", "at most 16"),
        ({"input_file_id": None}, "input_file_id", "missing_required_parameter", "'input_file_id'"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "expires_after.seconds", "invalid_value",
         "3600"),
        ({"options": {"prioritty": "low"}}, "options.prioritty", "unknown_parameter", "Did you mean 'priority'?"),
        ({"options": {"budget_usd": "5"}}, "options.budget_usd", "invalid_type", "options.budget_usd"),
        ({"options": {"providers": ["nobody"]}}, "options.providers", "invalid_value", "No such provider"),
        ({"options": {"defaults": {"stream": True}}}, "options.defaults", "invalid_value", "cannot be a default"),
        ({"priority": "low"}, "priority", "unknown_parameter", "options.priority"),
    ],
)  # fmt: skip
def test_what_can_be_known_at_once_is_refused_at_once(
    sqlite_world: World, fields: dict[str, Any], param: str, code: str, part: str
) -> None:
    """Each refusal names the parameter and says what would be right."""
    with pytest.raises(InvalidRequest) as caught:
        create(sqlite_world, INPUT, **fields)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert part in caught.value.message


def test_one_idempotency_key_makes_one_batch(world: World) -> None:
    """The same body again is the same batch; another body is a conflict."""
    file_id = upload(world, INPUT)
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    first = create_batch(world, default_project(world), body, idempotency_key="k")
    again = create_batch(world, default_project(world), {**body, "idempotency_key": "k"})
    assert again.public_id == first.public_id
    with pytest.raises(Conflict):
        create_batch(world, default_project(world), {**body, "metadata": {"x": "y"}}, idempotency_key="k")


def test_a_retried_post_of_an_sdk_does_not_make_a_twin(world: World) -> None:
    """x-stainless-retry-count ≥ 1 finds the batch of the first try; a first try never does."""
    body = {"input_file_id": upload(world, INPUT), "endpoint": CHAT, "completion_window": "24h"}
    project = default_project(world)
    first = create_batch(world, project, body, api_key_id=7)
    assert create_batch(world, project, body, api_key_id=7, retry_count=1).id == first.id
    assert create_batch(world, project, body, api_key_id=8, retry_count=1).id != first.id
    assert create_batch(world, project, body, api_key_id=7).id != first.id


def test_a_project_may_not_exceed_its_priority(sqlite_world: World) -> None:
    """max_priority is a ceiling."""
    default_project(sqlite_world)
    set_project_limits(sqlite_world, "default", max_priority="normal")
    with pytest.raises(Forbidden):
        create(sqlite_world, INPUT, options={"priority": "high"})
    assert create(sqlite_world, INPUT, options={"priority": "low"}).priority == 2


def test_many_requests_at_once_with_one_key_make_one_batch(world: World) -> None:
    """The unique index decides; the losers find the winner's batch."""
    body = {"input_file_id": upload(world, INPUT), "endpoint": CHAT, "completion_window": "24h"}
    project = default_project(world)
    start = threading.Barrier(6)

    def post(_: int) -> int:
        start.wait()
        return create_batch(world, project, body, idempotency_key="k").id

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(post, range(6)))) == 1


def test_many_retries_of_one_post_at_once_make_one_batch(world: World) -> None:
    """An SDK that gives up and tries again meets its own first try, also one that has not committed yet."""
    body = {"input_file_id": upload(world, INPUT), "endpoint": CHAT, "completion_window": "24h"}
    project = default_project(world)
    start = threading.Barrier(6)

    def post(_: int) -> int:
        start.wait()
        return create_batch(world, project, body, retry_count=1).id

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(post, range(6)))) == 1
