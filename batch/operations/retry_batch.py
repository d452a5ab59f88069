"""Retry a batch: a new batch of only its failed, expired and cancelled lines, custom_ids kept.

Owns: the family (a chain: each retry retries the newest member) and the new input file, made by walking
the old input beside its output file, both in input order: constant memory, and no rows are needed.
May not touch: the parent, which stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from batch.domain.errors import Conflict, Forbidden, InvalidRequest, NotFound
from batch.domain.line import read_custom_id
from batch.domain.states import is_terminal
from batch.files.jsonl import iter_lines
from batch.operations.create_batch import create_batch
from batch.operations.read_batches import get_batch
from batch.operations.read_files import read_input, read_output
from batch.operations.retention import delete_file
from batch.operations.upload import FileUpload
from batch.operations.world import World
from batch.storage import batches, files
from batch.storage.batches import PRIORITY_CLASSES, BatchRow
from batch.storage.projects import Project

_BLOCK_BYTES = 1 << 20


def retry_batch(world: World, project: Project, public_id: str, *, api_key_id: int | None = None) -> BatchRow:
    """The new batch. `public_id` may be any member of the family; the newest one is retried.

    Raises NotFound; Conflict while the newest member still runs, or when its input is deleted;
    InvalidRequest when it has nothing to retry.
    """
    newest = read_family(world, project.id, public_id)[-1]
    if not is_terminal(newest.status):
        raise Conflict(f"{newest.public_id} is still {newest.status}; retry it when it has ended.")
    input_id = _write_input(world, project, newest)
    request = as_request(newest, input_id)
    key = f"retry:{newest.public_id}"  # one child: two retries at once meet here, whose requests differ by the input
    try:
        return create_batch(
            world, project, request, api_key_id=api_key_id, parent_id=newest.id, idempotency_key=key
        )
    except (Conflict, Forbidden, InvalidRequest) as refused:
        delete_file(world, project.id, input_id)
        if isinstance(refused, Conflict):  # somebody else's retry of the same batch was faster: theirs counts
            return read_family(world, project.id, public_id)[-1]
        raise


def read_family(world: World, project_id: int, public_id: str) -> list[BatchRow]:
    """All batches that retry each other, the first one first. Raises NotFound."""
    batch = get_batch(world, project_id, public_id)
    with world.db.read() as conn:
        while batch.parent_id is not None:
            batch = batches.load_batch(conn, batch.parent_id)
        family = [batch]
        while (child := batches.find_child(conn, family[-1].id)) is not None:
            family.append(child)
    return family


def read_family_lines(world: World, project_id: int, public_id: str, *, errors: bool = False) -> Iterator[bytes]:
    """The family's results as one: blocks of whole JSONL lines.

    Successes of every member, each custom_id once; or, with `errors`, what is still not done: the newest
    member's error file. Raises NotFound for a file that has expired or was deleted.
    """
    family = read_family(world, project_id, public_id)
    ended = [batch for batch in family if is_terminal(batch.status)]
    with world.db.read() as conn:
        if errors:
            wanted = [next((batch.error_file_id for batch in reversed(ended) if batch.status != "failed"), None)]
        else:
            wanted = [batch.output_file_id for batch in ended]
        rows = [files.load_file(conn, file_id) for file_id in wanted if file_id is not None]
    for row in rows:
        if row is None:
            raise NotFound("A result file of this batch was deleted or has expired.", param="id")
        yield from world.blobs.read(row.blob, 0, row.size_bytes)


def _write_input(world: World, project: Project, batch: BatchRow) -> str:
    with world.db.read() as conn:
        source = files.load_file(conn, batch.input_file_id) if batch.input_file_id else None
        done = files.load_file(conn, batch.output_file_id) if batch.output_file_id else None
    if source is None or (batch.output_file_id and done is None):
        raise Conflict("The input or output file of this batch was deleted or has expired; it cannot be retried.")
    finished = (str(line["custom_id"]) for line in read_output(world, done)) if done else iter(())
    with FileUpload(world, project.id) as upload:
        lines = _copy_unfinished(world, read_input(world, source), finished, upload)
        if lines == 0:
            raise InvalidRequest(f"Every line of {batch.public_id} has completed; there is nothing to retry.")
        stem = re.sub(r"(\.jsonl|\.ndjson|\.json)?(\.gz)?$", "", source.filename)
        return upload.finish(purpose="batch", filename=f"{stem}_retry.jsonl").public_id


def _copy_unfinished(
    world: World, chunks: Iterator[bytes], finished: Iterator[str], upload: FileUpload
) -> int:
    """Both walks are in input order, so one look ahead tells whether a line is done."""
    copied, block = 0, bytearray()
    next_done = next(finished, None)
    for raw in iter_lines(chunks, max_line_bytes=world.settings.max_line_bytes):
        if raw.data is None:
            continue
        if next_done is not None and read_custom_id(raw.data) == next_done:
            next_done = next(finished, None)
            continue
        block += raw.data + b"\n"
        copied += 1
        if len(block) >= _BLOCK_BYTES:
            upload.append(bytes(block))
            block.clear()
    if block:
        upload.append(bytes(block))
    return copied


def as_request(batch: BatchRow, input_id: str) -> dict[str, object]:
    options = dict(batch.options)
    if batch.budget_usd is not None:  # what a resume raised counts, and what the parent spent does not
        options["budget_usd"] = batch.budget_usd
    if batch.max_failure_share is not None:
        options["max_failure_share"] = batch.max_failure_share
    options.setdefault("priority", PRIORITY_CLASSES[batch.priority])
    expiry = batch.output_expires_after_s
    return {
        "input_file_id": input_id,
        "endpoint": batch.endpoint,
        "completion_window": None if batch.completion_window == "none" else batch.completion_window,
        "metadata": batch.metadata,
        "options": options,
        "output_expires_after": {"anchor": "created_at", "seconds": expiry} if expiry else None,
    }
