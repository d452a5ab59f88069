"""Create a batch: check what can be known at once, insert it as `validating`, ring ingest.

Owns: the synchronous refusals, the completion window, idempotent creation.
May not touch: the input file's content; what is wrong in it shows later as a failed batch.
Second step of the journey. The bell is rung after the commit; a lost one is rung again by a sweep.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson
from sqlalchemy import Connection

from batch.domain.errors import Conflict, Forbidden, InvalidRequest, InvalidValue
from batch.domain.ids import new_id
from batch.domain.line import json_kind
from batch.domain.options import BatchOptions
from batch.operations.upload import check_expiry
from batch.operations.webhook_targets import check_target
from batch.operations.world import World
from batch.settings import parse_duration
from batch.storage import batches, files
from batch.storage.batches import PRIORITY_CLASSES, BatchRow
from batch.storage.projects import Project

ENDPOINTS = ("/v1/chat/completions", "/v1/embeddings", "/v1/responses")
TWIN_WITHIN_S = 300.0


def create_batch(
    world: World,
    project: Project,
    body: Mapping[str, Any],
    *,
    api_key_id: int | None = None,
    idempotency_key: str | None = None,
    retry_count: int = 0,
    parent_id: int | None = None,
) -> BatchRow:
    """The new batch, or the one that the same request made before.

    `body` is the request's JSON. `idempotency_key` is the header's (a field of that name counts too);
    `retry_count` is `x-stainless-retry-count`: from 1 on, the same key and body within five minutes are
    one batch. `completion_window` null means no deadline. Raises InvalidRequest, Forbidden, Conflict.
    """
    options = BatchOptions.parse(body.get("options"))
    window_s = _check_fields(world, body)
    _check_options(world, project, options)
    key = idempotency_key or body.get("idempotency_key")
    request_hash = _hash(body)
    public_id = new_id("batch_")

    def insert(conn: Connection) -> BatchRow | None:
        made = _made_before(conn, project.id, api_key_id, key, request_hash, retry_count)
        if made is not None:
            return made
        file = files.find_file(conn, project.id, body["input_file_id"])
        made = batches.insert_batch(
            conn,
            window_s=window_s,
            public_id=public_id,
            project_id=project.id,
            input_file_id=file.id if file else None,
            parent_id=parent_id,
            idempotency_key=key,
            request_hash=request_hash,
            api_key_id=api_key_id,
            **_as_asked(body, options),
        )
        # else: our own commit whose answer was lost, or another process took the idempotency key just now
        return made or batches.find_batch(conn, project.id, public_id) or _made_before(
            conn, project.id, api_key_id, key, request_hash, retry_count
        )

    batch = world.db.transact(insert)
    assert batch is not None
    if batch.public_id == public_id:
        world.bells.ingest(batch.id)
    return batch


def _as_asked(body: Mapping[str, Any], options: BatchOptions) -> dict[str, Any]:
    """The columns that repeat the request."""
    return {
        "endpoint": body["endpoint"],
        "completion_window": body["completion_window"] or "none",
        "input_file": body["input_file_id"],
        "metadata": dict(body.get("metadata") or {}),
        "options": options.stored,
        "priority": PRIORITY_CLASSES.index(options.priority),
        "budget_usd": options.budget_usd,
        "max_failure_share": options.max_failure_share,
        "output_expires_after_s": (body.get("output_expires_after") or {}).get("seconds"),
    }


def _made_before(
    conn: Connection, project_id: int, api_key_id: int | None, key: str | None, request_hash: str, retry_count: int
) -> BatchRow | None:
    if key is not None:
        made = batches.find_by_idempotency_key(conn, project_id, key)
        if made is not None and made.request_hash != request_hash:
            message = "This idempotency key was used with a different request."
            raise Conflict(message, param="idempotency_key", code="idempotency_key_reused")
        return made
    batches.lock_requests_like(conn, request_hash)
    if retry_count >= 1:
        return batches.find_recent_twin(conn, project_id, api_key_id, request_hash, TWIN_WITHIN_S)
    return None


def _check_fields(world: World, body: Mapping[str, Any]) -> float | None:
    """The window in seconds; None for no deadline."""
    for name in ("input_file_id", "endpoint", "completion_window"):
        if name not in body or (body[name] is None and name != "completion_window"):
            message = f"Missing required parameter: '{name}'."
            raise InvalidRequest(message, param=name, code="missing_required_parameter")
        if body[name] is not None and not isinstance(body[name], str):
            raise _wrong_type(name, "a string", body[name])
    if body["endpoint"] not in ENDPOINTS:
        supported = ", ".join(f"'{value}'" for value in ENDPOINTS[:-1])
        message = f"Invalid value: '{body['endpoint']}'. Supported values are: {supported}, and '{ENDPOINTS[-1]}'."
        raise InvalidValue(message, param="endpoint")
    _check_metadata(body.get("metadata"))
    _check_output_expiry(body.get("output_expires_after"))
    _check_idempotency_key(body.get("idempotency_key"))
    for name in body:
        if name in BatchOptions.model_fields:
            message = f"Unknown parameter: '{name}'. Did you mean 'options.{name}'?"
            raise InvalidRequest(message, param=name, code="unknown_parameter")
    return _window_s(world, body["completion_window"])


def _window_s(world: World, window: str | None) -> float | None:
    if window is None:
        return None
    allowed = world.settings.completion_windows
    seconds = parse_duration(window)
    if seconds is None or seconds > 366 * 86_400 or (allowed and window not in allowed):
        supported = ", ".join(f"'{value}'" for value in allowed) or "a duration such as '24h', '90m' or '7d'"
        message = f"Invalid completion_window: '{window}'. Supported: {supported}."
        raise InvalidValue(message, param="completion_window")
    return seconds


def _check_metadata(metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        raise _wrong_type("metadata", "an object", metadata)
    if len(metadata) > 16:
        message = f"Invalid 'metadata': too many properties. Expected at most 16, got {len(metadata)}."
        raise InvalidRequest(message, param="metadata", code="object_above_max_properties")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise _wrong_type(f"metadata.{key}", "a string", value)
        if len(key) > 64 or len(value) > 512:
            place = f"metadata.{key[:64]}"
            message = f"Invalid '{place}': keys hold at most 64 characters, values at most 512."
            raise InvalidRequest(message, param=place, code="string_above_max_length")


def _check_output_expiry(given: Any) -> None:
    if given is None:
        return
    if not isinstance(given, dict) or given.get("anchor") != "created_at" or type(given.get("seconds")) is not int:
        message = "Invalid 'output_expires_after': expected {\"anchor\": \"created_at\", \"seconds\": integer}."
        raise InvalidValue(message, param="output_expires_after")
    check_expiry(given["seconds"])


def _check_idempotency_key(key: Any) -> None:
    if key is not None and not (isinstance(key, str) and 1 <= len(key) <= 255):
        message = "Invalid 'idempotency_key': expected a string of 1 to 255 characters."
        raise InvalidValue(message, param="idempotency_key")


def _check_options(world: World, project: Project, options: BatchOptions) -> None:
    if PRIORITY_CLASSES.index(options.priority) < PRIORITY_CLASSES.index(project.max_priority):
        raise Forbidden(f"This project may use priority '{project.max_priority}' at most.", param="options.priority")
    if options.webhook_url is not None:
        allow_private = world.settings.webhook_allow_private
        check_target(options.webhook_url, allow_private=allow_private, param="options.webhook_url")
    for entry in options.providers or ():
        name = entry.partition("/")[0]
        if name not in world.catalog.providers:
            known = ", ".join(sorted(world.catalog.providers)) or "none"
            raise InvalidValue(f"No such provider: '{name}'. Configured: {known}.", param="options.providers")
        if project.allowed_providers is not None and name not in project.allowed_providers:
            raise Forbidden(f"This project may not use provider '{name}'.", param="options.providers")


def _wrong_type(name: str, expected: str, got: Any) -> InvalidRequest:
    message = f"Invalid type for '{name}': expected {expected}, but got {json_kind(got)} instead."
    return InvalidRequest(message, param=name, code="invalid_type")


def _hash(body: Mapping[str, Any]) -> str:
    """Of the request without its key, independent of the order of its fields."""
    rest = {name: value for name, value in body.items() if name != "idempotency_key"}
    return hashlib.sha256(orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)).hexdigest()
