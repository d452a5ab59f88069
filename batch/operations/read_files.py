"""Read files: one, a page, the bytes.

Owns: NotFound for what is not the project's, and which purposes may be downloaded.
May not touch: ranges and headers (api/files).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Literal

import orjson

from batch.domain.errors import InvalidRequest, NotFound
from batch.files.jsonl import inflate, iter_lines
from batch.operations.world import World
from batch.storage import files
from batch.storage.files import FileRow

_NOT_DOWNLOADABLE = {"assistants", "user_data"}


def get_file(world: World, project_id: int, public_id: str) -> FileRow:
    """Raises NotFound."""
    with world.db.read() as conn:
        found = files.find_file(conn, project_id, public_id)
    if found is None:
        raise NotFound(f"No such File object: {public_id}", param="id")
    return found


def list_files(
    world: World,
    project_id: int,
    *,
    purpose: str | None = None,
    limit: int = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> tuple[list[FileRow], bool]:
    """A page by creation time, and whether there is more. Raises InvalidRequest for a wrong cursor."""
    with world.db.read() as conn:
        mark = files.find_file(conn, project_id, after) if after else None
        if after and mark is None:
            raise InvalidRequest(f"No such File object: {after}", param="after")
        rows = files.page_files(conn, project_id, purpose=purpose, limit=limit + 1, order=order, after=mark)
    return rows[:limit], len(rows) > limit


def read_input(world: World, file: FileRow) -> Iterator[bytes]:
    """The bytes of a batch's input, decompressed where it is gzip, deleted or not. Raises what `inflate` does."""
    chunks = world.blobs.read(file.blob)
    return inflate(chunks, max_bytes=world.settings.max_file_bytes) if file.encoding == "gzip" else chunks


def read_output(world: World, file: FileRow) -> Iterator[dict[str, Any]]:
    """The lines of an output file; they are ours, so that their length is not bounded again."""
    for raw in iter_lines(world.blobs.read(file.blob), max_line_bytes=sys.maxsize):
        yield orjson.loads(raw.data or b"null")


def get_downloadable(world: World, project_id: int, public_id: str) -> FileRow:
    """Raises NotFound, InvalidRequest."""
    found = get_file(world, project_id, public_id)
    if found.purpose in _NOT_DOWNLOADABLE:
        raise InvalidRequest(f"Not allowed to download files of purpose: {found.purpose}")
    return found
