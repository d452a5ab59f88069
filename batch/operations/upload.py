"""Upload a file: bytes come in blocks, a file row comes out.

Owns: hashing and measuring while writing, the checks of a batch input's name and first line, expiry.
May not touch: HTTP; the async route hands blocks over from a thread, in any order of form fields.
First step of the journey. Acknowledged means: the blob is on disk, then its row.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Self

import orjson
from sqlalchemy import Connection

from batch.domain.errors import InvalidRequest, InvalidValue, TooLarge
from batch.files.blobs import new_blob_name
from batch.files.jsonl import GZIP_MAGIC
from batch.operations.world import World
from batch.storage import files, projects
from batch.storage.files import FileRow

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
EXPIRES_AFTER_S = (3600, 2_592_000)
_HEAD_BYTES = 1 << 20
_SUFFIXES = {"", ".jsonl", ".ndjson", ".json", ".gz"}


class FileUpload:
    """One file on its way in. `append` blocks, then `finish` or `abort`; leaving the block aborts what is open."""

    def __init__(self, world: World, project_id: int) -> None:
        self._world = world
        self._project_id = project_id
        self._writer = world.blobs.writer(new_blob_name("inputs", world.clock))
        self._hash = hashlib.sha256()
        self._head = bytearray()

    def append(self, block: bytes) -> None:
        """Raises InvalidRequest `File is too large.` at the first byte beyond the limit."""
        if self._writer.size + len(block) > self._world.settings.max_file_bytes:
            raise InvalidRequest("File is too large.")
        if len(self._head) < _HEAD_BYTES:
            self._head += block[: _HEAD_BYTES - len(self._head)]
        self._hash.update(block)
        self._writer.write(block)

    def finish(
        self,
        *,
        purpose: str,
        filename: str,
        expires_after_s: int | None = None,
        in_same: Callable[[Connection, FileRow], None] = lambda conn, file: None,
    ) -> FileRow:
        """Check, make durable, insert the row; `in_same` joins its transaction. Raises InvalidRequest, and what
        `in_same` raises; no file is kept then."""
        check_purpose(purpose)
        check_expiry(expires_after_s)
        head = bytes(self._head)
        if expires_after_s is None and purpose == "batch":
            expires_after_s = self._world.settings.input_expires_after_s or None
        if purpose == "batch":
            _check_batch_input(filename, head)
        check_storage(self._world, self._project_id, self._writer.size)
        self._writer.commit()

        def insert(conn: Connection) -> FileRow:
            file = files.insert_file(
                conn,
                project_id=self._project_id,
                purpose=purpose,
                filename=filename,
                size_bytes=self._writer.size,
                blob=self._writer.name,
                sha256=self._hash.hexdigest(),
                encoding="gzip" if head.startswith(GZIP_MAGIC) else None,
                expires_after_s=expires_after_s,
            )
            in_same(conn, file)
            return file

        return self._world.db.transact(insert)

    def abort(self) -> None:
        """Forget what was not committed."""
        self._writer.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


def check_storage(world: World, project_id: int, size_bytes: int) -> None:
    """Raises TooLarge when so many bytes more are beyond what the project may store."""
    with world.db.read() as conn:
        limit = projects.load_project(conn, project_id).limits.get("storage_bytes")
        if limit and projects.stored_bytes(conn, project_id) + size_bytes > limit:
            raise TooLarge(f"The project's storage limit of {limit:,} bytes is reached. Delete files first.")


def check_purpose(purpose: str | None) -> None:
    if purpose is None:
        raise InvalidRequest("'purpose' is a required property")
    if purpose not in PURPOSES:
        supported = ", ".join(f"'{value}'" for value in PURPOSES)
        raise InvalidValue(f"Invalid value: '{purpose}'. Supported values are: {supported}.", param="purpose")


def check_expiry(expires_after_s: int | None) -> None:
    """`expires_after[seconds]` of a file, `output_expires_after.seconds` of a batch."""
    low, high = EXPIRES_AFTER_S
    if expires_after_s is not None and not low <= expires_after_s <= high:
        place = "expires_after.seconds"
        message = f"Invalid '{place}': expected a value between {low} and {high}, got {expires_after_s}."
        raise InvalidValue(message, param=place)


def _check_batch_input(filename: str, head: bytes) -> None:
    """A name that says it is something else, an empty file, or a first line that is no JSON object."""
    if PurePosixPath(filename).suffix.lower() not in _SUFFIXES or not _starts_with_json(head):
        raise InvalidRequest("Invalid file format for Batch API. Must be .jsonl")


def _starts_with_json(head: bytes) -> bool:
    if head.startswith(GZIP_MAGIC):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, _HEAD_BYTES)
        except zlib.error:
            return False
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    line, newline, _ = text.partition(b"\n")
    if not newline and len(head) >= _HEAD_BYTES // 2:
        return line.startswith(b"{")  # the first line goes on beyond what was kept: ingest will see
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False
