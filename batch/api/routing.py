"""What routes share: the world, the caller, the world's errors in /docs.

Owns: the two dependencies. Both come from the request's scope, where api.frame and api.app put them.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from batch.api.access import Caller
from batch.api.shapes import ErrorObject
from batch.operations.world import World

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorObject, "description": text}
    for status, text in (
        (400, "The request is wrong; the message names the place"),
        (401, "No key, or a wrong one"),
        (403, "The key, or this server, does not allow it"),
        (404, "No such thing in this project"),
        (409, "The object's state forbids it; a retry cannot help"),
        (413, "Too large"),
        (429, "The project's request rate is used up"),
        (500, "A fault of the server"),
        (503, "The database, the broker or the file store does not answer"),
    )
}


def make_router(tag: str) -> APIRouter:
    return APIRouter(tags=[tag], responses=ERRORS)


async def _world_of(request: Request) -> World:
    world: World = request.app.state.world
    return world


async def _caller_of(request: Request) -> Caller:
    caller: Caller = request.scope["caller"]
    return caller


WorldDep = Annotated[World, Depends(_world_of)]
CallerDep = Annotated[Caller, Depends(_caller_of)]


def form_schema(
    file_field: str, fields: dict[str, dict[str, Any]] | None = None, required: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The request body of a streamed form, for OpenAPI."""
    schema = {
        "type": "object",
        "properties": {**(fields or {}), file_field: {"type": "string", "format": "binary"}},
        "required": [file_field, *required],
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
