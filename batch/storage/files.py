"""Rows of `files`: what was uploaded and what was written for download.

Owns: inserting, paging, marking deleted or expired, and which blobs nobody needs any more.
May not touch: bytes (batch/files), uploads in parts (storage.uploads).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from batch.domain.ids import new_file_id
from batch.domain.states import OPEN
from batch.storage.engine import db_in, db_now
from batch.storage.tables import batches, files


@dataclass(frozen=True, slots=True)
class FileRow:
    """One file. Times are milliseconds since the epoch; `size_bytes` are those of the upload as sent."""

    id: int
    public_id: str
    project_id: int
    purpose: str
    filename: str
    size_bytes: int
    sha256: str | None
    blob: str
    encoding: str | None
    status: str
    created_at: int
    expires_at: int | None


_COLUMNS = [files.c[name] for name in FileRow.__slots__]


def insert_file(
    conn: sa.Connection, *, blob: str, expires_after_s: int | None = None, **values: Any
) -> FileRow:
    """A new file, made now by the database's clock; `expires_after_s` None keeps it for ever. `values`: project_id,
    purpose, filename, size_bytes and, where there are any, sha256 and encoding.

    The file that owns `blob` already, where a commit's answer was lost: two rows would share its bytes.
    """
    stored = _one(conn, files.c.blob == blob)
    if stored is not None:
        return stored
    times = {"created_at": db_now(), "expires_at": db_in(expires_after_s) if expires_after_s else None}
    insert = sa.insert(files).values(public_id=new_file_id(), blob=blob, **times, **values)
    return FileRow(*conn.execute(insert.returning(*_COLUMNS)).one())


def find_file(conn: sa.Connection, project_id: int, public_id: str) -> FileRow | None:
    """A file that is neither deleted nor past its expiry."""
    return _one(conn, files.c.public_id == public_id, files.c.project_id == project_id, *_is_live())


def load_file(conn: sa.Connection, file_id: int) -> FileRow | None:
    """By internal id; also one that is deleted, as long as its blob stands."""
    return _one(conn, files.c.id == file_id, files.c.blob_deleted_at.is_(None))


def page_files(
    conn: sa.Connection,
    project_id: int,
    *,
    purpose: str | None,
    limit: int,
    order: Literal["asc", "desc"],
    after: FileRow | None,
) -> list[FileRow]:
    """At most `limit` live files by (created_at, id), beyond the file `after`."""
    key = sa.tuple_(files.c.created_at, files.c.id)
    query = sa.select(*_COLUMNS).where(files.c.project_id == project_id, *_is_live())
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    if after is not None:
        mark = sa.tuple_(sa.literal(after.created_at), sa.literal(after.id))
        query = query.where(key > mark if order == "asc" else key < mark)
    turn = sa.asc if order == "asc" else sa.desc
    query = query.order_by(turn(files.c.created_at), turn(files.c.id))
    return [FileRow(*row) for row in conn.execute(query.limit(limit))]


def mark_deleted_if_live(conn: sa.Connection, project_id: int, public_id: str) -> bool:
    """False when there is no such file, or no longer."""
    done = conn.execute(
        sa.update(files)
        .where(files.c.public_id == public_id, files.c.project_id == project_id, *_is_live())
        .values(deleted_at=db_now())
    )
    return done.rowcount == 1


def mark_expired(conn: sa.Connection, limit: int) -> int:
    """Mark files past their expiry as deleted; returns how many."""
    due = sa.select(files.c.id).where(files.c.expires_at <= db_now(), files.c.deleted_at.is_(None)).limit(limit)
    return conn.execute(
        sa.update(files).where(files.c.id.in_(due.scalar_subquery())).values(deleted_at=db_now())
    ).rowcount


def unneeded_blobs(conn: sa.Connection, limit: int) -> Sequence[tuple[int, str]]:
    """(file id, blob) of deleted files whose bytes may go.

    A batch that still runs reads its large bodies from its input blob, so that one stays until it ends.
    """
    in_use = sa.exists(
        sa.select(batches.c.id).where(batches.c.input_file_id == files.c.id, batches.c.status.in_(OPEN))
    )
    rows = conn.execute(
        sa.select(files.c.id, files.c.blob)
        .where(files.c.deleted_at.is_not(None), files.c.blob_deleted_at.is_(None), ~in_use)
        .order_by(files.c.id)
        .limit(limit)
    )
    return [(row.id, row.blob) for row in rows]


def note_blobs_deleted(conn: sa.Connection, file_ids: Sequence[int]) -> None:
    conn.execute(sa.update(files).where(files.c.id.in_(file_ids)).values(blob_deleted_at=db_now()))


def known_blobs(conn: sa.Connection, names: Sequence[str]) -> set[str]:
    """Those of `names` that a file still owns."""
    rows = conn.execute(sa.select(files.c.blob).where(files.c.blob.in_(names), files.c.blob_deleted_at.is_(None)))
    return set(rows.scalars())


def _one(conn: sa.Connection, *conditions: sa.ColumnElement[bool]) -> FileRow | None:
    row = conn.execute(sa.select(*_COLUMNS).where(*conditions)).one_or_none()
    return FileRow(*row) if row else None


def _is_live() -> tuple[sa.ColumnElement[bool], ...]:
    return (
        files.c.deleted_at.is_(None),
        sa.or_(files.c.expires_at.is_(None), files.c.expires_at > db_now()),
    )
