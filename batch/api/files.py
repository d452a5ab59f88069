"""/v1/files: create, list, retrieve, delete, content.

Owns: the routes. Creating streams the form and is async; the rest runs in threads.
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

from fastapi import Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from batch.api.download import send_file
from batch.api.multipart import Form, received_form
from batch.api.routing import CallerDep, WorldDep, form_schema, make_router
from batch.api.shapes import DeletedObject, FileObject, Page, answer, file_object, page
from batch.domain.errors import InvalidRequest
from batch.operations.read_files import get_downloadable, get_file, list_files
from batch.operations.retention import delete_file
from batch.operations.upload import PURPOSES, FileUpload, check_purpose
from batch.telemetry import emit

router = make_router("files")

_FORM = form_schema(
    "file",
    {
        "purpose": {"type": "string", "enum": list(PURPOSES)},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
    required=("purpose",),
)


@router.post("/v1/files", response_model=FileObject, openapi_extra=_FORM)
async def create_file(request: Request, world: WorldDep, caller: CallerDep) -> Response:
    """Store a file; the form's fields come in any order."""
    async with received_form(request, "file", lambda: FileUpload(world, caller.project_id)) as form:
        purpose = form.fields.get("purpose")
        check_purpose(purpose)
        if form.sink is None:
            raise InvalidRequest("'file' is a required property", param="file")
        upload = cast(FileUpload, form.sink)
        file = await run_in_threadpool(
            upload.finish, purpose=purpose or "", filename=form.filename, expires_after_s=read_expiry(form)
        )
    emit("file_received", file=file.public_id, size_bytes=file.size_bytes, purpose=file.purpose)
    return answer(file_object(file))


@router.get("/v1/files", response_model=Page)
def read_page(
    world: WorldDep,
    caller: CallerDep,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """The project's files, newest first."""
    rows, has_more = list_files(
        world, caller.project_id, purpose=purpose, limit=limit, order=order, after=after
    )
    return page(rows, has_more, file_object)


@router.get("/v1/files/{file_id}", response_model=FileObject)
def read_file(file_id: str, world: WorldDep, caller: CallerDep) -> Response:
    return answer(file_object(get_file(world, caller.project_id, file_id)))


@router.delete("/v1/files/{file_id}", response_model=DeletedObject)
def remove_file(file_id: str, world: WorldDep, caller: CallerDep) -> Response:
    """Gone at once; its bytes go when no running batch reads them."""
    delete_file(world, caller.project_id, file_id)
    return answer({"id": file_id, "object": "file", "deleted": True})


@router.get(
    "/v1/files/{file_id}/content",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}, 206: {"description": "A range"}},
)
def read_content(file_id: str, request: Request, world: WorldDep, caller: CallerDep) -> Response:
    """The bytes as uploaded or written; Range and If-None-Match are honoured."""
    file = get_downloadable(world, caller.project_id, file_id)
    response = send_file(world, request, file)
    if response.status_code in (200, 206):
        size = int(response.headers.get("content-length", file.size_bytes))
        emit("file_sent", file=file.public_id, size_bytes=size)
    return response


def read_expiry(form: Form) -> int | None:
    """`expires_after[seconds]`; the anchor can only be created_at. Raises InvalidRequest."""
    text = form.fields.get("expires_after[seconds]")
    anchor = form.fields.get("expires_after[anchor]", "created_at")
    if anchor != "created_at" or (text is None and "expires_after[anchor]" in form.fields):
        raise InvalidRequest("Invalid 'expires_after': expected anchor created_at and seconds.", param="expires_after")
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 12:
        raise InvalidRequest(
            "Invalid type for 'expires_after.seconds': expected an integer.",
            param="expires_after.seconds",
            code="invalid_type",
        )
    return int(text)
