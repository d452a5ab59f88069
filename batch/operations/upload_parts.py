"""Upload a file in parts: open, add parts, complete into a file, or cancel.

Owns: the order and sum of parts, the md5 check, the hour an upload lives.
May not touch: HTTP. Parts are blobs of their own; completing writes them as one new blob.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Self

from sqlalchemy import Connection

from batch.domain.errors import BatchmillError, Conflict, InvalidRequest, InvalidValue, NotFound
from batch.files.blobs import new_blob_name
from batch.operations.read_files import get_file
from batch.operations.upload import FileUpload, check_expiry, check_purpose, check_storage
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
        message = f"expected a value between 1 and {world.settings.max_file_bytes}, got {size_bytes}"
        raise InvalidValue(f"Invalid 'bytes': {message}.", param="bytes")
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

    def __exit__(self, *_: object) -> None:
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
    """Join the named parts in that order; the same completion of a completed upload gives what it gave before.

    Raises InvalidRequest for a wrong sum, part or md5; Conflict; NotFound, also for a file that is deleted since.
    """
    upload = get_upload(world, project_id, upload_id)
    parts_sha256 = hashlib.sha256(",".join(part_ids).encode()).hexdigest()
    md5 = md5 and md5.lower()
    if upload.status == "pending":
        try:
            _join(world, upload, part_ids, parts_sha256, md5)
        except BatchmillError:
            if get_upload(world, project_id, upload_id).status == "pending":
                raise  # else somebody was faster, perhaps with the same request
        upload = get_upload(world, project_id, upload_id)
    if upload.file is None or upload.parts_sha256 != parts_sha256 or md5 not in (None, upload.md5):
        raise _not_pending(upload)
    return upload, get_file(world, project_id, upload.file)


def cancel_upload(world: World, project_id: int, upload_id: str) -> UploadRow:
    """Raises NotFound; Conflict when it is completed or expired. Cancelling twice is one cancel."""
    upload = get_upload(world, project_id, upload_id)
    world.db.transact(uploads.cancel_if_pending, upload.id)
    upload = get_upload(world, project_id, upload_id)
    if upload.status != "cancelled":
        raise _not_pending(upload)
    return upload


def _join(world: World, upload: UploadRow, part_ids: Sequence[str], parts_sha256: str, md5: str | None) -> None:
    parts = _chosen_parts(world, upload, part_ids)
    digest = hashlib.md5(usedforsecurity=False)

    def complete(conn: Connection, file: FileRow) -> None:
        if not uploads.complete_if_pending(
            conn, upload.id, file.id, parts_sha256=parts_sha256, md5=digest.hexdigest()
        ):
            raise _not_pending(upload)

    with FileUpload(world, upload.project_id) as writer:
        for part in parts:
            for block in world.blobs.read(part.blob, 0, part.size_bytes):
                digest.update(block)
                writer.append(block)
        if md5 not in (None, digest.hexdigest()):
            raise InvalidRequest("The md5 does not match the uploaded bytes.", param="md5")
        writer.finish(
            purpose=upload.purpose, filename=upload.filename, expires_after_s=upload.file_expires_after_s,
            in_same=complete,
        )  # fmt: skip


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


def _not_pending(upload: UploadRow) -> Conflict:
    return Conflict(f"This upload is not pending any more: its status is '{upload.status}'.")
