"""/v1/uploads: a file in parts of at most 64 MB, in parallel where the client likes.

Owns: the routes. A part streams like a file; completing copies on the server, in a thread.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from fastapi import Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from batch.api.multipart import clean_filename, received_form
from batch.api.routing import CallerDep, WorldDep, form_schema, make_router
from batch.api.shapes import PartObject, UploadObject, answer, part_object, upload_object
from batch.domain.errors import InvalidRequest
from batch.operations.upload_parts import PartUpload, begin_part, cancel_upload, complete_upload, open_upload

router = make_router("uploads")


class ExpiresAfter(BaseModel):
    anchor: Literal["created_at"]
    seconds: int


class CreateUpload(BaseModel):
    filename: str = Field(max_length=1000)
    purpose: str
    bytes: int
    mime_type: str = Field(max_length=255)
    expires_after: ExpiresAfter | None = None


class CompleteUpload(BaseModel):
    part_ids: list[str] = Field(max_length=100_000)
    md5: str | None = None


@router.post("/v1/uploads", response_model=UploadObject)
def create_upload(body: CreateUpload, world: WorldDep, caller: CallerDep) -> Response:
    """Open an upload; it expires after an hour."""
    upload = open_upload(
        world,
        caller.project_id,
        filename=clean_filename(body.filename),
        purpose=body.purpose,
        mime_type=body.mime_type,
        size_bytes=body.bytes,
        expires_after_s=body.expires_after.seconds if body.expires_after else None,
    )
    return answer(upload_object(upload))


@router.post("/v1/uploads/{upload_id}/parts", response_model=PartObject, openapi_extra=form_schema("data"))
async def create_part(upload_id: str, request: Request, world: WorldDep, caller: CallerDep) -> Response:
    """Add a part of at most 64 MB."""
    async with received_form(request, "data", lambda: begin_part(world, caller.project_id, upload_id)) as form:
        if form.sink is None:
            raise InvalidRequest("'data' is a required property", param="data")
        part = await run_in_threadpool(cast(PartUpload, form.sink).finish)
    return answer(part_object(part, upload_id))


@router.post("/v1/uploads/{upload_id}/complete", response_model=UploadObject)
def finish_upload(upload_id: str, body: CompleteUpload, world: WorldDep, caller: CallerDep) -> Response:
    """Join the parts in the order given."""
    upload, file = complete_upload(world, caller.project_id, upload_id, body.part_ids, md5=body.md5)
    return answer(upload_object(upload, file))


@router.post("/v1/uploads/{upload_id}/cancel", response_model=UploadObject)
def drop_upload(upload_id: str, world: WorldDep, caller: CallerDep, _body: dict[str, Any] | None = None) -> Response:
    return answer(upload_object(cancel_upload(world, caller.project_id, upload_id)))
