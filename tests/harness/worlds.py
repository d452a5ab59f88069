"""A world on a real database and real files, with a provider that is configured and never called."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from batch.domain.result import LineResult
from batch.operations.bells import Bells
from batch.operations.create_batch import create_batch
from batch.operations.ingest import ingest_batch
from batch.operations.upload import FileUpload
from batch.operations.world import World, open_world
from batch.settings import Settings
from batch.storage import batches, projects
from batch.storage.batches import BatchRow
from batch.storage.projects import Project
from batch.storage.results import record_group

CHAT = "/v1/chat/completions"
PROVIDERS: dict[str, Any] = {"acme": {"base_url": "http://127.0.0.1:9/v1", "models": ["m", "m2"]}}


@dataclass
class RungBells(Bells):
    """Bells that remember what was rung: ("ingest", 1), ..."""

    rung: list[tuple[str, int]] = field(default_factory=list)

    def drain(self, lane_id: int, queue: str) -> None:
        self.rung.append(("drain", lane_id))

    def ingest(self, batch_id: int) -> None:
        self.rung.append(("ingest", batch_id))

    def finalize(self, batch_id: int) -> None:
        self.rung.append(("finalize", batch_id))

    def deliver_webhooks(self) -> None:
        self.rung.append(("webhooks", 0))


def make_world(database_url: str, directory: Path, **settings: Any) -> World:
    """Settings as given; the database must be migrated."""
    values: dict[str, Any] = {"providers": PROVIDERS, "data_dir": directory, "database_url": database_url, **settings}
    return open_world(Settings(**values), bells=RungBells())


def default_project(world: World) -> Project:
    with world.db.write() as conn:
        return projects.ensure_project(conn)


def request_line(custom_id: str, *, model: str = "m", **body: Any) -> dict[str, Any]:
    content = body.pop("content", f"Say {custom_id}")
    messages = [{"role": "user", "content": content}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": model, "messages": messages, **body},
    }


def jsonl(lines: list[Any]) -> bytes:
    return b"".join((line if isinstance(line, bytes) else orjson.dumps(line)) + b"\n" for line in lines)


def upload(world: World, content: bytes | str, filename: str = "in.jsonl", project: Project | None = None) -> str:
    with FileUpload(world, (project or default_project(world)).id) as writer:
        writer.append(content if isinstance(content, bytes) else content.encode())
        return writer.finish(purpose="batch", filename=filename).public_id


def create(world: World, content: bytes | str, *, project: Project | None = None, **fields: Any) -> BatchRow:
    """A batch over these bytes, or over the file with this id; of the default project or another."""
    owner = project or default_project(world)
    file_id = upload(world, content, project=owner) if isinstance(content, bytes) else content
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **fields}
    return create_batch(world, owner, body)


def ingest(world: World, content: bytes | str, **fields: Any) -> BatchRow:
    """Created and ingested; the row as it stands then."""
    batch = create(world, content, **fields)
    ingest_batch(world, batch.id, "test")
    return load(world, batch)


def load(world: World, batch: BatchRow) -> BatchRow:
    with world.db.read() as conn:
        return batches.load_batch(conn, batch.id)


def record(world: World, batch: BatchRow, lines: dict[int, tuple[str, bool]]) -> None:
    """Results as a worker would record them: {line: (custom_id, ok)}."""
    rows = [
        LineResult(batch.id, line, custom_id, ok, orjson.dumps({"custom_id": custom_id, "ok": ok}))
        for line, (custom_id, ok) in lines.items()
    ]
    record_group(world.db, rows, "test")


def read_lines(world: World, batch: BatchRow, name: str) -> list[dict[str, Any]] | None:
    """The lines of its "output" or "error" file; None when there is no such file."""
    from batch.storage import files

    file_id = batch.output_file_id if name == "output" else batch.error_file_id
    if file_id is None:
        return None
    with world.db.read() as conn:
        file = files.load_file(conn, file_id)
    assert file is not None
    content = b"".join(world.blobs.read(file.blob))
    assert len(content) == file.size_bytes
    return [orjson.loads(line) for line in content.splitlines()]
