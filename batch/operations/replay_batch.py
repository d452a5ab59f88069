"""Send a sample of an ended batch again, and say how many answers came out the same.

Owns: the sample (evenly spread over the answered lines) and the comparison by choices and fingerprints. It
promises nothing that it did not see. May not touch: the old batch; the new one is an ordinary batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from batch.domain.errors import Conflict, NotFound
from batch.domain.line import read_custom_id
from batch.domain.states import is_terminal
from batch.files.jsonl import iter_lines
from batch.operations.create_batch import create_batch
from batch.operations.read_files import read_input, read_output
from batch.operations.retry_batch import as_request
from batch.operations.upload import FileUpload
from batch.operations.world import World
from batch.storage import batches, files, projects
from batch.storage.batches import BatchRow
from batch.storage.files import FileRow


@dataclass(slots=True)
class Replay:
    """What came of it. `before` and `now` count the fingerprints of the compared answers; "none" where none came."""

    sent: int
    same: int = 0
    different: list[str] = field(default_factory=list)  # custom_ids
    unanswered: int = 0  # failed this time
    seeded: int = 0  # of the compared ones: the seed was really sent
    before: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)


def replay_batch(world: World, public_id: str, sample: int) -> BatchRow:
    """A new batch of up to `sample` answered lines of an ended one.

    Raises NotFound; Conflict while the batch runs, answered nothing, or when a file of it is gone.
    """
    old = find_batch(world, public_id)
    if not is_terminal(old.status) or old.completed == 0:
        raise Conflict(f"{public_id} is {old.status} with {old.completed:,} answers; there is nothing to send again.")
    wanted = {line["custom_id"] for line in _sampled(world, old, sample)}
    with world.db.read() as conn:
        project = projects.load_project(conn, old.project_id)
    source = _file(world, old.input_file_id)
    with FileUpload(world, project.id) as upload:
        for raw in iter_lines(read_input(world, source), max_line_bytes=world.settings.max_line_bytes):
            if raw.data is not None and read_custom_id(raw.data) in wanted:
                upload.append(raw.data + b"\n")
        again = upload.finish(purpose="batch", filename="replay.jsonl")
    request = as_request(old, again.public_id)
    return create_batch(world, project, {**request, "metadata": {"replay_of": public_id}})


def compare_replay(world: World, old_id: str, new_id: str) -> Replay:
    """The new batch's answers beside the old one's. Raises NotFound, Conflict when a file is gone."""
    new = find_batch(world, new_id)
    answers = {line["custom_id"]: line for line in _answers(world, new)} if new.output_file_id else {}
    found = Replay(sent=new.total, unanswered=new.total - len(answers))
    for line in _answers(world, find_batch(world, old_id)):
        now = answers.pop(line["custom_id"], None)
        if now is None:
            continue
        for counts, answer in ((found.before, line), (found.now, now)):
            counts[_fingerprint(answer)] = counts.get(_fingerprint(answer), 0) + 1
        found.seeded += now.get("batchmill", {}).get("seed") == "sent"
        if _said(line) == _said(now):
            found.same += 1
        else:
            found.different.append(line["custom_id"])
        if not answers:
            break
    return found


def find_batch(world: World, public_id: str) -> BatchRow:
    """The row, whoever's it is. Raises NotFound."""
    with world.db.read() as conn:
        row = batches.find_anyones_batch(conn, public_id)
    if row is None:
        raise NotFound(f"No batch found with id '{public_id}'.")
    return row


def _sampled(world: World, batch: BatchRow, sample: int) -> Iterator[dict[str, Any]]:
    """Every k-th answer, so that all parts of the file are seen."""
    step = max(1.0, batch.completed / sample)
    due = 0.0
    for index, line in enumerate(_answers(world, batch)):
        if index >= due:
            yield line
            due += step


def _answers(world: World, batch: BatchRow) -> Iterator[dict[str, Any]]:
    return read_output(world, _file(world, batch.output_file_id))


def _file(world: World, file_id: int | None) -> FileRow:
    with world.db.read() as conn:
        row = files.load_file(conn, file_id) if file_id is not None else None
    if row is None:
        raise Conflict("A file of this batch was deleted or has expired; it cannot be compared.")
    return row


def _said(line: dict[str, Any]) -> list[Any]:
    """What a reader would compare: each choice's words, calls and reason to stop. Ids and times differ always."""
    body = line["response"]["body"]
    return [
        (choice.get("message", {}).get("content"), choice.get("message", {}).get("refusal"),
         [call.get("function") for call in choice.get("message", {}).get("tool_calls") or ()],
         choice.get("finish_reason"))
        for choice in body.get("choices") or ()
    ] or [body.get("output"), body.get("data")]  # fmt: skip


def _fingerprint(line: dict[str, Any]) -> str:
    return str(line["response"]["body"].get("system_fingerprint") or "none")
