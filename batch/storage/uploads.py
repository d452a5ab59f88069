"""Rows of `uploads` and `upload_parts`: a file that arrives in pieces.

Owns: the states pending, completed, cancelled, expired, and the order of parts.
May not touch: bytes; the file that an upload becomes is a row of storage.files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from batch.domain.ids import new_id
from batch.storage.engine import db_in, db_now
from batch.storage.tables import files, upload_parts, uploads

UPLOAD_LIVES_S = 3600


@dataclass(frozen=True, slots=True)
class UploadRow:
    """One upload. Times are milliseconds since the epoch. What a completed one was made of: `parts_sha256` (of the
    parts' ids in their order), `md5` of the bytes; `file` is the file's public id."""

    id: int
    public_id: str
    project_id: int
    filename: str
    purpose: str
    mime_type: str
    size_bytes: int
    file_expires_after_s: int | None
    status: str
    created_at: int
    expires_at: int
    parts_sha256: str | None
    md5: str | None
    file: str | None


@dataclass(frozen=True, slots=True)
class PartRow:
    id: int
    public_id: str
    blob: str
    size_bytes: int
    created_at: int


_FILE = sa.select(files.c.public_id).where(files.c.id == uploads.c.file_id).scalar_subquery().label("file")
_UPLOAD = [*(uploads.c[name] for name in UploadRow.__slots__ if name != "file"), _FILE]
_PART = [upload_parts.c[name] for name in PartRow.__slots__]


def insert_upload(conn: sa.Connection, /, **values: Any) -> UploadRow:
    """A pending upload that expires an hour from now."""
    times = {"created_at": db_now(), "expires_at": db_in(UPLOAD_LIVES_S)}
    insert = sa.insert(uploads).values(public_id=new_id("upload_"), status="pending", **times, **values)
    upload_id = conn.execute(insert.returning(uploads.c.id)).scalar_one()
    return UploadRow(*conn.execute(sa.select(*_UPLOAD).where(uploads.c.id == upload_id)).one())


def find_upload(conn: sa.Connection, project_id: int, public_id: str) -> UploadRow | None:
    row = conn.execute(
        sa.select(*_UPLOAD).where(uploads.c.public_id == public_id, uploads.c.project_id == project_id)
    ).one_or_none()
    return UploadRow(*row) if row else None


def insert_part_if_pending(conn: sa.Connection, upload_id: int, blob: str, size_bytes: int) -> PartRow | None:
    """None when the upload was completed, cancelled or expired meanwhile. Locks its row: a part cannot slip in
    beside a completion."""
    if not _leave_pending(conn, upload_id, "pending"):
        return None
    insert = sa.insert(upload_parts).values(
        public_id=new_id("part_"), upload_id=upload_id, blob=blob, size_bytes=size_bytes, created_at=db_now()
    )
    return PartRow(*conn.execute(insert.returning(*_PART)).one())


def parts_of(conn: sa.Connection, upload_id: int) -> list[PartRow]:
    rows = conn.execute(sa.select(*_PART).where(upload_parts.c.upload_id == upload_id).order_by(upload_parts.c.id))
    return [PartRow(*row) for row in rows]


def complete_if_pending(conn: sa.Connection, upload_id: int, file_id: int, *, parts_sha256: str, md5: str) -> bool:
    """True also when it was completed with this very file before: a commit's answer was lost."""
    done = conn.execute(
        sa.update(uploads)
        .where(uploads.c.id == upload_id, _is_pending() | (uploads.c.file_id == file_id))
        .values(status="completed", file_id=file_id, parts_sha256=parts_sha256, md5=md5)
    )
    return done.rowcount == 1


def cancel_if_pending(conn: sa.Connection, upload_id: int) -> bool:
    return _leave_pending(conn, upload_id, "cancelled")


def expire_overdue(conn: sa.Connection, limit: int) -> int:
    """Mark pending uploads past their hour as expired; returns how many."""
    due = sa.select(uploads.c.id).where(uploads.c.status == "pending", uploads.c.expires_at <= db_now()).limit(limit)
    expire = sa.update(uploads).where(uploads.c.id.in_(due.scalar_subquery()), uploads.c.status == "pending")
    return conn.execute(expire.values(status="expired")).rowcount


def parts_of_ended_uploads(conn: sa.Connection, limit: int) -> list[PartRow]:
    """Parts that nobody can use any more: their upload is completed, cancelled or expired."""
    rows = conn.execute(
        sa.select(*_PART)
        .join(uploads, uploads.c.id == upload_parts.c.upload_id)
        .where(uploads.c.status != "pending")
        .order_by(upload_parts.c.id)
        .limit(limit)
    )
    return [PartRow(*row) for row in rows]


def delete_parts(conn: sa.Connection, part_ids: Sequence[int]) -> None:
    conn.execute(sa.delete(upload_parts).where(upload_parts.c.id.in_(part_ids)))


def known_part_blobs(conn: sa.Connection, names: Sequence[str]) -> set[str]:
    rows = conn.execute(sa.select(upload_parts.c.blob).where(upload_parts.c.blob.in_(names)))
    return set(rows.scalars())


def _leave_pending(conn: sa.Connection, upload_id: int, status: str) -> bool:
    done = conn.execute(sa.update(uploads).where(uploads.c.id == upload_id, _is_pending()).values(status=status))
    return done.rowcount == 1


def _is_pending() -> sa.ColumnElement[bool]:
    return (uploads.c.status == "pending") & (uploads.c.expires_at > db_now())
