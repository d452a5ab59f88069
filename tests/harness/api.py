"""A real API process on a real socket, over a fresh data directory, for tests of the HTTP contract."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from batch.operations.bells import Bells
from batch.operations.world import World, open_world
from batch.settings import Settings
from batch.storage.engine import Database
from batch.storage.migrate import migrate
from tests.harness.databases import free_port
from tests.harness.servers import Child, clean_environment, python
from tests.harness.waiting import eventually


@dataclass
class RunningApi:
    """`world` is the test's own view of the same database and files."""

    url: str
    world: World
    child: Child

    def sdk(self, key: str = "any", **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)

    def http(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)


@contextlib.contextmanager
def running_api(directory: Path, database_url: str | None = None, **env: str) -> Iterator[RunningApi]:
    """Started on a migrated database, stopped by SIGTERM afterwards. `env` gives BATCHMILL_ variables."""
    port = free_port()
    settings = Settings(data_dir=directory, port=port, database_url=database_url)
    database = Database(settings.resolved_database_url)
    migrate(database)
    database.close()
    environment = clean_environment(
        BATCHMILL_DATA_DIR=str(directory),
        BATCHMILL_PORT=str(port),
        BATCHMILL_DATABASE_URL=settings.resolved_database_url,
        **env,
    )
    child = Child(python("-m", "batch.api.serve"), env=environment, cwd=directory, log=directory / "api.log")
    world = open_world(settings, bells=Bells())
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: _answers(url) or not child.is_running(), timeout_s=30, what="the API starts")
        assert child.is_running(), child.text()
        yield RunningApi(url, world, child)
    finally:
        child.terminate()
        world.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    """One chat-completion request line."""
    content = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": content}
