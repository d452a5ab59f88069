"""Upload a file in parts: open, add parts, complete into a file, or cancel.

Owns: the order and sum of parts, the md5 check, the hour an upload lives.
May not touch: HTTP. Parts are blobs of their own; completing writes them as one new blob.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from sqlalchemy import Connection

from batch.domain.errors import Conflict, InvalidRequest, NotFound
from batch.files.blobs import new_blob_name
from batch.operations.upload import FileUpload, begin_upload, check_expiry, check_purpose, check_storage
from batch.operations.world import World
from batch.storage import uploads
from batch.storage.files import FileRow
from batch.storage.uploads import PartRow, UploadRow

PART_MAX_BYTES = 64 * 1024 * 1024


def open_upload(
    world: World,
    project_id: int,
    *,
    filename: str,
    purpose: str,
    mime_type: str,
    size_bytes: int,
    expires_after_s: int | None = None,
) -> UploadRow:
    """A pending upload of exactly `size_bytes`, to be completed within an hour. Raises InvalidRequest."""
    check_purpose(purpose)
    check_expiry(expires_after_s)
    if not 0 < size_bytes <= world.settings.max_file_bytes:
        raise InvalidRequest(
            f"Invalid 'bytes': expected a value between 1 and {world.settings.max_file_bytes}, got {size_bytes}.",
            param="bytes",
            code="invalid_value",
        )
    check_storage(world, project_id, size_bytes)
    return world.db.transact(
        uploads.insert_upload,
        project_id=project_id,
        filename=filename,
        purpose=purpose,
        mime_type=mime_type,
        size_bytes=size_bytes,
        file_expires_after_s=expires_after_s,
    )


def get_upload(world: World, project_id: int, public_id: str) -> UploadRow:
    """Raises NotFound."""
    with world.db.read() as conn:
        found = uploads.find_upload(conn, project_id, public_id)
    if found is None:
        raise NotFound(f"No such Upload object: {public_id}", param="id")
    return found


class PartUpload:
    """One part on its way in; `append` blocks, then `finish`. Leaving the block aborts what is open."""

    def __init__(self, world: World, upload: UploadRow) -> None:
        self._world = world
        self._upload = upload
        self._writer = world.blobs.writer(new_blob_name("parts", world.clock))

    def append(self, block: bytes) -> None:
        """Raises InvalidRequest beyond 64 MB."""
        if self._writer.size + len(block) > PART_MAX_BYTES:
            raise InvalidRequest(f"A part holds at most {PART_MAX_BYTES:,} bytes.", param="data")
        self._writer.write(block)

    def finish(self) -> PartRow:
        """The durable part. Raises Conflict when the upload is no longer pending."""
        self._writer.commit()
        part = self._world.db.transact(
            uploads.insert_part_if_pending, self._upload.id, self._writer.name, self._writer.size
        )
        if part is None:
            self._world.blobs.delete(self._writer.name)
            raise _not_pending(get_upload(self._world, self._upload.project_id, self._upload.public_id))
        return part

    def abort(self) -> None:
        """Forget what was not committed."""
        self._writer.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def begin_part(world: World, project_id: int, upload_id: str) -> PartUpload:
    """A writer for one part. Raises NotFound, Conflict."""
    upload = get_upload(world, project_id, upload_id)
    if upload.status != "pending":
        raise _not_pending(upload)
    return PartUpload(world, upload)


def complete_upload(
    world: World, project_id: int, upload_id: str, part_ids: Sequence[str], *, md5: str | None = None
) -> tuple[UploadRow, FileRow]:
    """Join the named parts in that order. Raises InvalidRequest for a wrong sum, part or md5; Conflict; NotFound."""
    upload = get_upload(world, project_id, upload_id)
    if upload.status != "pending":
        raise _not_pending(upload)
    parts = _chosen_parts(world, upload, part_ids)

    def complete(conn: Connection, file: FileRow) -> None:
        if not uploads.complete_if_pending(conn, upload.id, file.id):
            raise _not_pending(get_upload(world, project_id, upload_id))

    with begin_upload(world, project_id) as writer:
        _copy(world, parts, writer, md5)
        file = writer.finish(
            purpose=upload.purpose, filename=upload.filename, expires_after_s=upload.file_expires_after_s,
            in_same=complete,
        )  # fmt: skip
    return get_upload(world, project_id, upload_id), file


def cancel_upload(world: World, project_id: int, upload_id: str) -> UploadRow:
    """Raises NotFound; Conflict when it is completed or expired. Cancelling twice is one cancel."""
    upload = get_upload(world, project_id, upload_id)
    world.db.transact(uploads.cancel_if_pending, upload.id)
    upload = get_upload(world, project_id, upload_id)
    if upload.status != "cancelled":
        raise _not_pending(upload)
    return upload


def _chosen_parts(world: World, upload: UploadRow, part_ids: Sequence[str]) -> list[PartRow]:
    with world.db.read() as conn:
        stored = {part.public_id: part for part in uploads.parts_of(conn, upload.id)}
    for part_id in part_ids:
        if part_id not in stored:
            raise InvalidRequest(f"No such part in this upload: {part_id}", param="part_ids")
    parts = [stored[part_id] for part_id in part_ids]
    total = sum(part.size_bytes for part in parts)
    if total != upload.size_bytes:
        raise InvalidRequest(
            f"The parts hold {total} bytes, but the upload was opened for {upload.size_bytes}.", param="part_ids"
        )
    return parts


def _copy(world: World, parts: Sequence[PartRow], writer: FileUpload, md5: str | None) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    for part in parts:
        for block in world.blobs.read(part.blob, 0, part.size_bytes):
            digest.update(block)
            writer.append(block)
    if md5 is not None and md5.lower() != digest.hexdigest():
        raise InvalidRequest("The md5 does not match the uploaded bytes.", param="md5")


def _not_pending(upload: UploadRow) -> Conflict:
    return Conflict(f"This upload is not pending any more: its status is '{upload.status}'.")
