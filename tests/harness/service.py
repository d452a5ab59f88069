"""A whole `batchmill up` in a child process, over simulators in this one: files in over HTTP, files out."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson

from tests.harness.databases import free_port
from tests.harness.servers import Child, clean_environment, python
from tests.harness.waiting import eventually

_OVER = {"completed", "failed", "expired", "cancelled"}


@dataclass
class Finished:
    """One batch's end: the object of the API, and its output and error lines by custom_id."""

    batch: dict[str, Any]
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def report(self) -> dict[str, int]:
        return dict(self.batch["batchmill"]["report"])

    def note(self, custom_id: str) -> dict[str, Any]:
        return dict(self.lines[custom_id]["batchmill"])

    def body(self, custom_id: str) -> dict[str, Any]:
        """The completion of a line that has one."""
        response = self.lines[custom_id]["response"]
        assert response is not None and response["status_code"] == 200, self.lines[custom_id]
        return dict(response["body"])


class Service:
    """A running service. `configure` before it starts is the TOML of batchmill.toml."""

    def __init__(self, directory: Path, port: int, child: Child) -> None:
        self.directory = directory
        self.child = child
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)

    def submit(self, lines: list[dict[str, Any]], *, endpoint: str = "/v1/chat/completions", **options: Any) -> str:
        """Upload and create; the batch's id."""
        content = b"".join(orjson.dumps(line) + b"\n" for line in lines)
        uploaded = self.client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})
        assert uploaded.status_code == 200, uploaded.text
        body = {"input_file_id": uploaded.json()["id"], "endpoint": endpoint, "completion_window": "24h",
                "options": options}  # fmt: skip
        created = self.client.post("/v1/batches", json=body)
        assert created.status_code == 200, created.text
        return str(created.json()["id"])

    def wait(self, batch_id: str, timeout_s: float = 60) -> Finished:
        """The batch once it is over, with its lines."""

        def look() -> dict[str, Any] | None:
            seen = self.client.get(f"/v1/batches/{batch_id}").json()
            return seen if seen["status"] in _OVER else None

        batch = eventually(look, timeout_s, every_s=0.1, what=f"{batch_id} ends\n{self.child.text()[-2000:]}")
        assert batch is not None
        finished = Finished(batch)
        for name in ("output_file_id", "error_file_id"):
            if batch[name]:
                content = self.client.get(f"/v1/files/{batch[name]}/content").content
                found = [orjson.loads(line) for line in content.splitlines()]
                finished.lines |= {line["custom_id"]: line for line in found}
        return finished

    def run(self, lines: list[dict[str, Any]], *, timeout_s: float = 60, **options: Any) -> Finished:
        return self.wait(self.submit(lines, **options), timeout_s)


@contextlib.contextmanager
def running_service(config: str, *arguments: str, **env: str) -> Iterator[Service]:
    """`config` is the rest of batchmill.toml; `arguments` go to `batchmill up`. In a directory of its own."""
    directory, port = Path(tempfile.mkdtemp(prefix="bm-up-", dir="/tmp")), free_port()
    place = directory / "batchmill.toml"
    place.write_text(f'port = {port}\ndata_dir = "{directory}/data"\n{config}')
    command = python("-m", "batch.cli.app", "up", "--config", str(place), *arguments)
    child = Child(command, env=clean_environment(**env), cwd=directory, log=directory / "up.log")
    service = Service(directory, port, child)
    try:
        eventually(lambda: _is_ready(service) or not child.is_running(), 60, what="the service starts")
        assert child.is_running(), child.text()[-3000:]
        yield service
    finally:
        service.client.close()
        child.terminate()
        shutil.rmtree(directory, ignore_errors=True)


def _is_ready(service: Service) -> bool:
    try:
        return service.client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def chat(custom_id: str, model: str, content: str = "Say something.", **body: Any) -> dict[str, Any]:
    """One chat-completion line; `batchmill=` becomes the line's own override."""
    override = body.pop("batchmill", None)
    asked = {"model": model, "messages": [{"role": "user", "content": content}], **body}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": asked}
    return {**line, "batchmill": override} if override else line
