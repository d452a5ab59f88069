"""/v1/batches as the openai SDK sees it; what the workers do is staged in the database."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
import sqlalchemy as sa
from openai import OpenAI

from batch.domain.outcome import Usage
from batch.domain.result import LineResult
from batch.storage.engine import db_now
from batch.storage.results import record_group
from batch.storage.tables import batch_errors, batches
from tests.harness.api import RunningApi, line

INPUT = "".join(json.dumps(line(f"r{number}")) + "\n" for number in range(3)).encode()
CHAT = "/v1/chat/completions"


def _create(client: OpenAI, **options: Any) -> Any:
    file_id = client.files.create(file=INPUT, purpose="batch").id
    return client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h", **options)


def _stage(api: RunningApi, public_id: str, **values: Any) -> int:
    """Put a batch where a worker would have brought it; its internal id."""
    with api.world.db.write() as connection:
        connection.execute(sa.update(batches).where(batches.c.public_id == public_id).values(**values))
        return connection.execute(sa.select(batches.c.id).where(batches.c.public_id == public_id)).scalar_one()


def test_a_new_batch_has_every_field(client: OpenAI, http: httpx.Client) -> None:
    """Explicit nulls until reached, counts an object, metadata never null, times whole seconds."""
    made = _create(client, metadata={"job": "nightly"})
    body = http.get(f"/v1/batches/{made.id}").json()
    assert made.id.startswith("batch_") and len(made.id) == 38
    assert (body["object"], body["status"], body["endpoint"]) == ("batch", "validating", CHAT)
    assert body["expires_at"] == body["created_at"] + 86_400
    assert body["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert body["metadata"] == {"job": "nightly"} and body["errors"] is None
    for name in ("output_file_id", "error_file_id", "in_progress_at", "finalizing_at", "completed_at", "failed_at",
                 "expired_at", "cancelling_at", "cancelled_at", "model"):  # fmt: skip
        assert body[name] is None
    assert set(body["usage"]) == {
        "input_tokens", "input_tokens_details", "output_tokens", "output_tokens_details", "total_tokens",
    }  # fmt: skip
    assert client.batches.retrieve(made.id).to_dict() == made.to_dict()


def test_metadata_is_an_object_when_unset(client: OpenAI) -> None:
    assert _create(client).metadata == {}


def test_a_file_that_does_not_exist_is_no_synchronous_error(client: OpenAI) -> None:
    made = client.batches.create(input_file_id="file-none", endpoint=CHAT, completion_window="24h")
    assert made.status == "validating" and made.input_file_id == "file-none"


def test_the_sdk_pages_newest_first(client: OpenAI) -> None:
    made = [_create(client).id for _ in range(3)]
    seen = [batch.id for batch in client.batches.list(limit=2)]
    assert seen[:3] == made[::-1] and len(seen) == len(set(seen))
    page = client.batches.list(limit=2)
    assert page.has_more and page.first_id == made[-1] and page.last_id == made[-2]  # type: ignore[attr-defined]


def test_an_unknown_batch_is_a_404(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="No batch found with id 'batch_x'"):
        client.batches.retrieve("batch_x")


def test_a_failed_batch_lists_its_errors(api: RunningApi, client: OpenAI) -> None:
    made = _create(client)
    batch_id = _stage(api, made.id, status="failed", failed_at=db_now(), ingest_errors=1)
    with api.world.db.write() as connection:
        connection.execute(
            sa.insert(batch_errors).values(
                batch_id=batch_id, position=0, code="invalid_json_line", message="Not JSON.", line=2
            )
        )
    got = client.batches.retrieve(made.id)
    assert got.errors is not None and got.errors.data is not None
    assert got.errors.data[0].to_dict() == {
        "code": "invalid_json_line",
        "message": "Not JSON.",
        "param": None,
        "line": 2,
    }
    assert client.batches.list(limit=1).data[0].errors == got.errors


def test_a_terminal_batch_names_its_files_and_counts(api: RunningApi, client: OpenAI) -> None:
    made = _create(client)
    output = client.files.create(file=INPUT, purpose="batch")
    with api.world.db.read() as connection:
        file_row = connection.exec_driver_sql(f"SELECT id FROM files WHERE public_id = '{output.id}'").scalar_one()
    _stage(
        api, made.id, status="completed", sealed_at=db_now(), completed_at=db_now(), total=3, completed=2, failed=1,
        output_file_id=file_row, input_tokens=10, output_tokens=5,
    )  # fmt: skip
    got = client.batches.retrieve(made.id)
    assert got.request_counts is not None and got.request_counts.to_dict() == {"total": 3, "completed": 2, "failed": 1}
    assert (got.output_file_id, got.error_file_id) == (output.id, None)
    assert got.usage is not None and got.usage.total_tokens == 15


def test_the_same_idempotency_key_makes_one_batch(http: httpx.Client, client: OpenAI) -> None:
    body = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
    headers = {"idempotency-key": "k1"}
    first = http.post("/v1/batches", json=body, headers=headers).json()
    assert http.post("/v1/batches", json=body, headers=headers).json()["id"] == first["id"]
    assert http.post("/v1/batches", json=body | {"idempotency_key": "k1"}).json()["id"] == first["id"]
    other = http.post("/v1/batches", json=body | {"completion_window": "7d"}, headers=headers)
    assert other.status_code == 409 and other.headers["x-should-retry"] == "false"
    assert other.json()["error"]["code"] == "idempotency_key_reused"


def test_a_post_that_the_sdk_retried_makes_no_twin(http: httpx.Client) -> None:
    body = {"input_file_id": "file-twin", "endpoint": CHAT, "completion_window": "24h"}
    first = http.post("/v1/batches", json=body, headers={"x-stainless-retry-count": "0"}).json()
    again = http.post("/v1/batches", json=body, headers={"x-stainless-retry-count": "1"}).json()
    fresh = http.post("/v1/batches", json=body, headers={"x-stainless-retry-count": "0"}).json()
    assert again["id"] == first["id"] != fresh["id"]


def test_options_are_checked_and_shown(client: OpenAI) -> None:
    made = _create(client, extra_body={"options": {"priority": "low", "max_attempts": 3}})
    own = made.to_dict()["batchmill"]
    assert own["priority"] == "low" and own["options"]["max_attempts"] == 3
    for options in ({"priorty": "low"}, {"webhook_url": "http://10.0.0.1/x"}, {"budget_usd": -1}):
        with pytest.raises(openai.BadRequestError, match=f"options.{next(iter(options))}|webhook"):
            _create(client, extra_body={"options": options})


def test_cancelling_is_seen_at_once_and_twice_is_once(api: RunningApi, client: OpenAI) -> None:
    made = _create(client)
    cancelled = client.batches.cancel(made.id)
    assert cancelled.status == "cancelling" and isinstance(cancelled.cancelling_at, int)
    assert client.batches.cancel(made.id).status == "cancelling"


@pytest.mark.parametrize("status", ["completed", "failed", "expired", "finalizing"])
def test_what_has_ended_cannot_be_cancelled(api: RunningApi, client: OpenAI, status: str) -> None:
    """409 in the envelope, and the SDK is told not to try again."""
    made = _create(client)
    _stage(api, made.id, status=status, sealed_at=db_now())
    with pytest.raises(openai.ConflictError) as caught:
        client.batches.cancel(made.id)
    assert caught.value.body == {
        "message": f"Cannot cancel a batch with status '{status}'.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_cancel_wants_no_body_whatever_the_content_type_says(client: OpenAI, http: httpx.Client) -> None:
    for options in ({}, {"headers": {"content-type": "application/json"}}, {"json": {}}):
        made = _create(client)
        assert http.post(f"/v1/batches/{made.id}/cancel", **options).status_code == 200


def test_a_person_pauses_and_resumes(client: OpenAI, http: httpx.Client) -> None:
    """Paused is no status: clients of OpenAI see the one they know."""
    made = _create(client)
    paused = http.post(f"/v1/batches/{made.id}/pause").json()
    assert (paused["status"], paused["batchmill"]["paused"]) == ("validating", True)
    assert paused["batchmill"]["pause_reason"] == "person"
    resumed = http.post(f"/v1/batches/{made.id}/resume", json={"budget_usd": 5}).json()
    assert (resumed["batchmill"]["paused"], resumed["batchmill"]["budget_usd"]) == (False, 5)
    wrong = http.post(f"/v1/batches/{made.id}/resume", json={"budget_usd": "much"})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "budget_usd"


def test_a_retry_is_a_new_batch_of_what_is_not_done(api: RunningApi, client: OpenAI, http: httpx.Client) -> None:
    made = _create(client, metadata={"job": "x"})
    assert http.post(f"/v1/batches/{made.id}/retry").status_code == 409
    output = client.files.create(file=b'{"custom_id": "r1"}\n', purpose="batch").id
    with api.world.db.read() as connection:
        file_row = connection.exec_driver_sql(f"SELECT id FROM files WHERE public_id = '{output}'").scalar_one()
    _stage(api, made.id, status="cancelled", sealed_at=db_now(), total=3, completed=1, output_file_id=file_row)
    again = http.post(f"/v1/batches/{made.id}/retry").json()
    assert (again["batchmill"]["retry_of"], again["metadata"]) == (made.id, {"job": "x"})
    rows = client.files.content(again["input_file_id"]).text.splitlines()
    assert [json.loads(row)["custom_id"] for row in rows] == ["r0", "r2"]
    assert http.get(f"/v1/batches/{again['id']}/family").content == b'{"custom_id": "r1"}\n'


def test_partial_results_come_once_each_behind_the_cursor(api: RunningApi, client: OpenAI, http: httpx.Client) -> None:
    made = _create(client)
    batch_id = _stage(api, made.id, status="in_progress", in_progress_at=db_now(), total=3)
    url = f"/v1/batches/{made.id}/results"
    empty = http.get(url)
    assert (empty.content, empty.headers["x-next-after"], empty.headers["x-incomplete"]) == (b"", "0", "true")

    _record(api, batch_id, [2, 1])
    first = http.get(url, params={"limit": 1})
    assert first.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(row)["custom_id"] for row in first.text.splitlines()] == ["r2"]
    _record(api, batch_id, [3])
    rest = http.get(url, params={"after": first.headers["x-next-after"]})
    assert [json.loads(row)["custom_id"] for row in rest.text.splitlines()] == ["r1", "r3"]

    _stage(api, made.id, status="completed", sealed_at=db_now(), completed_at=db_now())
    end = http.get(url, params={"after": rest.headers["x-next-after"]})
    assert (end.content, end.headers["x-incomplete"]) == (b"", "false")
    assert http.get(url, params={"after": -1}).status_code == 400


def _record(api: RunningApi, batch_id: int, numbers: list[int]) -> None:
    rows = [
        LineResult(
            batch_id=batch_id, line=number, custom_id=f"r{number}", ok=True, usage=Usage(1, 0, 1, 0),
            output=json.dumps({"custom_id": f"r{number}"}).encode(),
        )
        for number in numbers
    ]  # fmt: skip
    assert record_group(api.world.db, rows, owner="test").recorded == len(numbers)
