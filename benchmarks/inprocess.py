"""A world without processes, for rows that measure one operation: a fresh database, files, no bells.

Owns: making it and putting an uploaded file and a batch into it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from batch.operations.bells import Bells
from batch.operations.create_batch import create_batch
from batch.operations.upload import FileUpload
from batch.operations.world import World, open_world
from batch.settings import load_settings
from batch.storage.migrate import migrate
from batch.storage.projects import Project, ensure_project
from batch.telemetry import configure_logs
from benchmarks.inputs import MODEL
from tests.harness.databases import fresh_postgres

_BLOCK = 1 << 20


@contextlib.contextmanager
def fresh_world(database: str) -> Iterator[tuple[World, Project]]:
    """`database` is "sqlite" or "postgresql"; gone afterwards."""
    configure_logs(log_level="error")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bm-world-")))
        url = stack.enter_context(fresh_postgres()) if database == "postgresql" else None
        providers = {"bench": {"base_url": "http://127.0.0.1:9/v1", "models": [MODEL]}}
        settings = load_settings(environ={}, data_dir=directory, database_url=url, providers=providers)
        world = open_world(settings, bells=Bells())
        stack.callback(world.close)
        migrate(world.db)
        with world.db.write() as connection:
            project = ensure_project(connection)
        yield world, project


def submit(world: World, project: Project, path: Path) -> int:
    """Upload the file and create a batch of it; the batch's internal id, still `validating`."""
    with FileUpload(world, project.id) as upload, path.open("rb") as source:
        while block := source.read(_BLOCK):
            upload.append(block)
        file = upload.finish(purpose="batch", filename=path.name)
    body = {"input_file_id": file.public_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return create_batch(world, project, body).id
