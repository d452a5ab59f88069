"""/v1/batches: create, list, retrieve, cancel; pause, resume, retry, explain, partial results.

Owns: the routes; what may be asked is decided by the operations.
"""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Any

from fastapi import Body, Header, Query
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from batch.api.routing import CallerDep, WorldDep, make_router
from batch.api.shapes import BatchObject, Page, answer, batch_object, page
from batch.operations.cancel_batch import cancel_batch
from batch.operations.create_batch import create_batch
from batch.operations.explain_batch import explain_batch
from batch.operations.pause_batch import pause_batch, resume_batch
from batch.operations.read_batches import get_batch, get_batch_errors, list_batches
from batch.operations.read_results import MAX_LINES, read_results
from batch.operations.retry_batch import read_family_lines, retry_batch
from batch.operations.world import World
from batch.storage.batches import BatchRow

router = make_router("batches")

JsonBody = Annotated[dict[str, Any] | None, Body()]
_CREATE_EXAMPLE = {
    "input_file_id": "file-abc",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
    "metadata": {"job": "nightly"},
    "options": {"priority": "low"},
}


@router.post("/v1/batches", response_model=BatchObject)
def create(
    body: Annotated[dict[str, Any], Body(examples=[_CREATE_EXAMPLE])],
    world: WorldDep,
    caller: CallerDep,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    x_stainless_retry_count: Annotated[str | None, Header()] = None,
) -> Response:
    """Validated in the background: what is wrong in the file shows as a failed batch."""
    batch = create_batch(
        world,
        caller.project,
        body,
        api_key_id=caller.key_id,
        idempotency_key=idempotency_key,
        retry_count=_count(x_stainless_retry_count),
    )
    return answer_batch(world, batch)


@router.get("/v1/batches", response_model=Page)
def read_page(
    world: WorldDep, caller: CallerDep, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
) -> Response:
    """The project's batches, newest first."""
    rows, has_more = list_batches(world, caller.project_id, limit=limit, after=after)
    errors = get_batch_errors(world, [row.id for row in rows])
    return page(rows, has_more, lambda row: batch_object(row, errors.get(row.id, ())))


@router.get("/v1/batches/{batch_id}", response_model=BatchObject)
def read_one(batch_id: str, world: WorldDep, caller: CallerDep) -> Response:
    return answer_batch(world, get_batch(world, caller.project_id, batch_id))


async def _poll(request: Request) -> Response:
    """read_one as clients ask for it, hundreds of times a second: FastAPI's way to it costs more than the answer."""
    request.scope["route"] = POLL
    return await run_in_threadpool(
        read_one, request.path_params["batch_id"], request.app.state.world, request.scope["caller"]
    )


POLL = Route("/v1/batches/{batch_id}", _poll)  # asked before the router's own, which describes it
POLL.methods = {"GET"}  # no HEAD, as everywhere


@router.get("/v1/batches/{batch_id}/explanation")
def read_explanation(batch_id: str, world: WorldDep, caller: CallerDep) -> Response:
    """Why the batch stands where it stands: what `batchmill status` prints."""
    return answer(explain_batch(world, caller.project_id, batch_id))


@router.get(
    "/v1/batches/{batch_id}/results",
    response_class=Response,
    responses={200: {"content": {"application/x-ndjson": {}}}},
)
def read_partial_results(
    batch_id: str,
    world: WorldDep,
    caller: CallerDep,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_LINES)] = 1_000,
) -> Response:
    """Lines recorded after the cursor, while the batch runs. Ask again with `x-next-after` as `after`;
    `x-incomplete: false` says that the batch has ended and nothing more will come."""
    found = read_results(world, caller.project_id, batch_id, after=after, limit=limit)
    headers = {"x-next-after": str(found.next_after), "x-incomplete": "false" if found.is_complete else "true"}
    body = "".join(f"{line}\n" for line in found.lines)
    return Response(body, headers=headers, media_type="application/x-ndjson")


@router.get(
    "/v1/batches/{batch_id}/family",
    response_class=Response,
    responses={200: {"content": {"application/x-ndjson": {}}}},
)
def read_family_results(batch_id: str, world: WorldDep, caller: CallerDep, errors: bool = False) -> Response:
    """The answers of a batch and of its retries as one: each custom_id once; with `errors`, what is still not done."""
    blocks = read_family_lines(world, caller.project_id, batch_id, errors=errors)
    first = next(blocks, b"")  # a missing file is found before the answer begins
    return StreamingResponse(chain((first,), blocks), media_type="application/x-ndjson")


class ResumeBatch(BaseModel):
    """Limits to raise; a limit that is still crossed keeps the batch paused."""

    budget_usd: float | None = None
    max_failure_share: float | None = None


@router.post("/v1/batches/{batch_id}/cancel", response_model=BatchObject)
def cancel(batch_id: str, world: WorldDep, caller: CallerDep, _body: JsonBody = None) -> Response:
    """Calls in flight land and are kept; cancelling twice is one cancel."""
    return answer_batch(world, cancel_batch(world, caller.project_id, batch_id))


@router.post("/v1/batches/{batch_id}/pause", response_model=BatchObject)
def pause(batch_id: str, world: WorldDep, caller: CallerDep, _body: JsonBody = None) -> Response:
    """Calls in flight land, no new one is made; the status stays."""
    return answer_batch(world, pause_batch(world, caller.project_id, batch_id))


@router.post("/v1/batches/{batch_id}/resume", response_model=BatchObject)
def resume(batch_id: str, world: WorldDep, caller: CallerDep, body: ResumeBatch | None = None) -> Response:
    """Go on after a pause by a person, a budget or a failure share."""
    raised = body or ResumeBatch()
    batch = resume_batch(
        world,
        caller.project_id,
        batch_id,
        budget_usd=raised.budget_usd,
        max_failure_share=raised.max_failure_share,
    )
    return answer_batch(world, batch)


@router.post("/v1/batches/{batch_id}/retry", response_model=BatchObject)
def retry(batch_id: str, world: WorldDep, caller: CallerDep, _body: JsonBody = None) -> Response:
    """A new batch of the lines that failed, expired or were cancelled; custom_ids are kept."""
    batch = retry_batch(world, caller.project, batch_id, api_key_id=caller.key_id)
    return answer_batch(world, batch)


def answer_batch(world: World, batch: BatchRow) -> Response:
    """The batch with its errors, if it has any."""
    has_errors = batch.ingest_errors > 0 or batch.status == "failed"
    errors = get_batch_errors(world, [batch.id]) if has_errors else {}
    return answer(batch_object(batch, errors.get(batch.id, ())))


def _count(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 6 else 0
