"""The objects that go out, exactly as OpenAI shapes them, and their schemas for /docs.

Owns: rows to JSON. Every key is always present, null until reached; times are whole Unix seconds.
What OpenAI does not have stands in `warnings` and under `batchmill`.
May not touch: the database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel
from starlette.responses import Response

from batch.storage.batches import PRIORITY_CLASSES, BatchError, BatchRow
from batch.storage.files import FileRow
from batch.storage.uploads import PartRow, UploadRow

T = TypeVar("T")


class FileObject(BaseModel):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None


class DeletedObject(BaseModel):
    id: str
    object: str
    deleted: Literal[True]


class UploadObject(BaseModel):
    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None


class PartObject(BaseModel):
    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str


class BatchErrorObject(BaseModel):
    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(BaseModel):
    object: Literal["list"]
    data: list[BatchErrorObject]


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class BatchObject(BaseModel):
    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: dict[str, Any]
    metadata: dict[str, str]
    warnings: list[Any]
    batchmill: dict[str, Any]


class ModelObject(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    shutdown_date: int | None


class WebhookEndpointObject(BaseModel):
    id: str
    object: Literal["webhook_endpoint"]
    name: str
    url: str
    event_types: list[str]
    created_at: int
    updated_at: int
    signing_secret_hint: str


class Page(BaseModel):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorObject(BaseModel):
    """Every error of every route."""

    error: ErrorBody


def answer(body: Mapping[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


def page(rows: Sequence[T], has_more: bool, shape: Callable[[T], dict[str, Any]]) -> Response:
    """A list with the ids of its ends; null ids when it is empty."""
    data = [shape(row) for row in rows]
    return answer(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": has_more,
        }
    )


def file_object(file: FileRow) -> dict[str, Any]:
    return {
        "id": file.public_id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_at // 1000,
        "expires_at": seconds(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "status_details": None,
    }


def upload_object(upload: UploadRow, file: FileRow | None = None) -> dict[str, Any]:
    return {
        "id": upload.public_id,
        "object": "upload",
        "bytes": upload.size_bytes,
        "created_at": upload.created_at // 1000,
        "expires_at": upload.expires_at // 1000,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "file": file_object(file) if file else None,
    }


def part_object(part: PartRow, upload_public_id: str) -> dict[str, Any]:
    return {
        "id": part.public_id,
        "object": "upload.part",
        "created_at": part.created_at // 1000,
        "upload_id": upload_public_id,
    }


_BATCH_TIMES = (
    "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at",
    "cancelled_at",
)  # fmt: skip


def batch_object(batch: BatchRow, errors: Sequence[BatchError] = ()) -> dict[str, Any]:
    return {
        "id": batch.public_id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": {"object": "list", "data": [error._asdict() for error in errors]} if errors else None,
        "input_file_id": batch.input_file,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": batch.created_at // 1000,
        **{name: seconds(getattr(batch, name)) for name in _BATCH_TIMES},
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": _usage_object(batch),
        "metadata": batch.metadata or {},
        "warnings": batch.warnings or [],
        "batchmill": _own_facts(batch),
    }


def seconds(millis: int | None) -> int | None:
    return None if millis is None else millis // 1000


def _usage_object(batch: BatchRow) -> dict[str, Any]:
    return {
        "input_tokens": batch.input_tokens,
        "input_tokens_details": {"cached_tokens": batch.cached_tokens},
        "output_tokens": batch.output_tokens,
        "output_tokens_details": {"reasoning_tokens": batch.reasoning_tokens},
        "total_tokens": batch.input_tokens + batch.output_tokens,
    }


def _own_facts(batch: BatchRow) -> dict[str, Any]:
    return {
        "paused": batch.paused,
        "pause_reason": batch.pause_reason,
        "priority": PRIORITY_CLASSES[batch.priority],
        "options": batch.options,
        "retry_of": batch.parent,
        "billed": {"input_tokens": batch.billed_input_tokens, "output_tokens": batch.billed_output_tokens},
        "cost_usd": batch.known_cost_usd,
        "unpriced_lines": batch.unpriced,
        "budget_usd": batch.budget_usd,
        "max_failure_share": batch.max_failure_share,
        "results": batch.last_seq,
        "report": batch.report,
    }
