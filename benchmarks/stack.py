"""The things a benchmark runs against, as real processes: the simulated upstream and a whole service.

Owns: starting and stopping them, finding their processes, submitting and waiting as a client does.
May not touch: the product's insides; everything goes through `batchmill up` and HTTP.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.inputs import MODEL
from tests.harness.databases import fresh_postgres

ROOT = Path(__file__).resolve().parents[1]
ANSWER_TOKENS = 60  # about 0.5 kB a response


@dataclass
class Upstream:
    """A simulator in its own process."""

    base_url: str
    process: psutil.Process

    @property
    def control(self) -> str:
        return self.base_url.removesuffix("/v1") + "/control"

    def totals(self) -> dict[str, Any]:
        return dict(httpx.get(self.control, trust_env=False).json())

    def set(self, **settings: Any) -> None:
        httpx.post(self.control, json=settings, trust_env=False).raise_for_status()


@contextlib.contextmanager
def upstream(*flags: str) -> Iterator[Upstream]:
    """`python -m batch.simulator` with these flags; answers at once unless told otherwise."""
    command = [sys.executable, "-m", "batch.simulator", "--no-log", "--answer-tokens", str(ANSWER_TOKENS), *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.search(r"http://\S+", first)
        if found is None:
            raise RuntimeError(f"the simulator did not start: {first!r}")
        yield Upstream(found.group(), psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(10)


class Service:
    """A running `batchmill up`, and a client of it."""

    def __init__(self, directory: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self.process = process
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False)

    def all(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        """The processes that make calls (and their children)."""
        return [p for p in self.all() if re.search(r" worker-\d+@", _command(p))]

    def named(self, text: str) -> list[psutil.Process]:
        """The processes whose command line holds `text`."""
        return [p for p in self.all() if text in _command(p)]

    def upload(self, path: Path) -> str:
        with path.open("rb") as content:
            answer = self.client.post("/v1/files", data={"purpose": "batch"}, files={"file": (path.name, content)})
        return str(_checked(answer)["id"])

    def create(self, file_id: str, **options: Any) -> str:
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h", **options}
        return str(_checked(self.client.post("/v1/batches", json=body))["id"])

    def batch(self, batch_id: str) -> dict[str, Any]:
        return _checked(self.client.get(f"/v1/batches/{batch_id}"))

    def wait(self, batch_id: str, statuses: set[str], timeout_s: float = 600, every_s: float = 0.05) -> dict[str, Any]:
        """The batch once it is in one of `statuses`; a failed batch raises."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            seen = self.batch(batch_id)
            if seen["status"] in statuses:
                return seen
            if seen["status"] in {"failed", "expired", "cancelled"}:
                raise RuntimeError(f"batch {seen['status']}: {seen.get('errors')}")
            time.sleep(every_s)
        raise TimeoutError(f"{batch_id} is not {statuses} after {timeout_s:g} s: {seen}")


@contextlib.contextmanager
def service(
    base_url: str, *, database: str = "sqlite", workers: int = 1, transport: str = "direct", limits: str = "",
    only: str | None = None, model: str = MODEL,
) -> Iterator[Service]:  # fmt: skip
    """`batchmill up` in a fresh directory, with one provider that serves `model`. `limits` are TOML lines for it.

    `only` "api" starts the API alone.
    """
    directory = Path(tempfile.mkdtemp(prefix="bm-bench-"))
    port = free_port()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        config = f'transport = "{transport}"\nworkers = {workers}\nport = {port}\ndata_dir = "{directory}/data"\n'
        if database == "postgresql":
            config += f'database_url = "{stack.enter_context(fresh_postgres())}"\n'
        config += f'[providers.bench]\nbase_url = "{base_url}"\nmodels = ["{model}"]\n{limits}\n'
        (directory / "batchmill.toml").write_text(config)
        log = stack.enter_context((directory / "log").open("wb"))
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("batchmill")), "up", "--config", str(directory / "batchmill.toml"),
             *(["--only", only] if only else [])],
            cwd=directory, stdout=log, stderr=log, env=plain_environment(), start_new_session=True,
        )  # fmt: skip
        stack.callback(_end, process)
        running = Service(directory, port, process)
        stack.callback(running.client.close)
        _wait_ready(running, with_workers=only is None)
        yield running


def plain_environment() -> dict[str, str]:
    """No provider keys, no BATCHMILL_ variables: what the configuration says is all there is."""
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY") and not k.startswith("BATCHMILL_")}
    return {**kept, "PYTHONPATH": str(ROOT)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_ready(running: Service, *, with_workers: bool) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if running.process.poll() is not None:
            break
        with contextlib.suppress(httpx.HTTPError):
            if not with_workers and running.client.get("/healthz").status_code == 200:
                return
            if running.client.get("/readyz").status_code == 200 and running.workers():
                time.sleep(1.0)  # Celery's own start-up must not stand in the figures
                return
        time.sleep(0.1)
    log = (running.directory / "log").read_text(errors="replace")[-3000:]
    raise RuntimeError(f"batchmill up did not become ready:\n{log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _checked(answer: httpx.Response) -> dict[str, Any]:
    if answer.is_error:
        asked = f"{answer.request.method} {answer.request.url.path}"
        raise RuntimeError(f"{asked}: {answer.status_code} {answer.text[:500]}")
    return dict(answer.json())
